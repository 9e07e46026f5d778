"""`marctl shadow`: versions that answer copies, compared with those that answer clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scripts.cli.output import FOLDER, common, note, result, table

if TYPE_CHECKING:
    from scripts.records.shadow import Joined


@click.group()
def shadow() -> None:
    """Compare shadow versions with the live ones; `marctl route shadow` sends them copies.

    Example: marctl shadow report
    """


@shadow.command()
@common
@click.option("--from", "source", type=FOLDER, help="Where the log was drained to [default: log in the state folder].")
@click.option("--undrained", is_flag=True, help="Also what is still in Redis.")
@click.option("--model", help="Only this model.")
@click.option("--since", help="Only from this time on: 2h, 7d, or 2026-11-21T08:00 (UTC).")
@click.option("--until", help="Only before this time.")
@click.option(
    "--html", "page_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots to this file."
)
@click.option("--strongest", type=click.IntRange(0), default=10, show_default=True, help="Disagreements to list.")
def report(
    state: Path,
    source: Path | None,
    undrained: bool,
    model: str | None,
    since: str | None,
    until: str | None,
    page_file: Path | None,
    strongest: int,
) -> None:
    """How shadow answers compare with those that the clients got: agreement, scores, latency, disagreements.

    Example: marctl shadow report --undrained --html shadow.html
    """
    from scripts.records import shadow as comparing
    from scripts.records.page import page
    from scripts.records.reader import read
    from scripts.records.streams import answering, connect
    from scripts.stack.state import State

    home = State(state)
    folder = source or home.prediction_log
    with answering():
        log = read(
            folder,
            model=model,
            since=moment("--since", since),
            until=moment("--until", until),
            columns=comparing.COLUMNS,
            client=connect(home) if undrained else None,
        )
    joined = comparing.join(log)
    require_pairs(joined, folder, undrained)
    summaries = [comparing.summary(each, strongest) for each in joined.comparisons]
    left_out = remarks(joined)
    if page_file is not None:
        page_file.write_text(page(joined.comparisons, summaries, left_out), encoding="utf-8")
        note(f"the page is {page_file}")
    content = {"comparisons": summaries, "unpaired": joined.unpaired, "ambiguous": joined.ambiguous}
    result(content, "\n\n".join([*map(describe, summaries), *([left_out] if left_out else [])]))


def moment(option: str, text: str | None) -> Any:
    from scripts.records.reader import moment

    try:
        return None if text is None else moment(text)
    except ValueError as err:
        raise click.UsageError(f"{option}: expected 30m, 2h, 7d or 2026-11-21T08:00, got {text!r}") from err


def require_pairs(joined: Joined, folder: Path, undrained: bool) -> None:
    from scripts.core.errors import UserError

    if joined.comparisons:
        return
    cure = "send copies with `marctl route shadow`"
    cure += "" if undrained else ", and drain the log, or take --undrained"
    raise UserError(f"nothing to compare in {folder}{' and Redis' * undrained}; {cure}. {remarks(joined)}".rstrip())


def remarks(joined: Joined) -> str:
    """What could not be compared, and why."""
    parts = []
    if joined.unpaired:
        parts.append(f"{joined.unpaired:,} shadow answers have no live answer in the log")
    if joined.ambiguous:
        parts.append(f"{joined.ambiguous:,} have an id that more than one request used")
    return f"Left out: {'; '.join(parts)}." if parts else ""


def describe(found: dict[str, Any]) -> str:
    """One comparison, for people."""
    from scripts.records.page import clock

    low, high = found["agreement_interval"]
    latency, shift = found["latency_ms"], found["score_shift"]
    head = (
        f"{found['model']}: {found['live']} live, {found['shadow']} its shadow, {found['pairs']:,} questions, "
        f"{clock(found['since'])} to {clock(found['until'])} UTC\n"
        f"  same choice      {100 * found['agreement']:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}\n"
        f"  its probability  {with_interval(shift, '{:+.4f}')} with the shadow\n"
        f"  time, p50 / p95  live {latency['live']['p50']:.1f} / {latency['live']['p95']:.1f} ms, "
        f"shadow {latency['shadow']['p50']:.1f} / {latency['shadow']['p95']:.1f} ms\n"
    )
    if (labelled := found["labelled"]) is not None:
        head += (
            f"  right            live {100 * labelled['live']:.1f} %, shadow {100 * labelled['shadow']:.1f} % "
            f"of {labelled['pairs']:,} with a true label\n"
        )
    return head + strongest_of(found["strongest_disagreements"])


def strongest_of(disagreements: list[dict[str, Any]]) -> str:
    from scripts.records.page import question

    if not disagreements:
        return "  no question was answered differently"
    rows = [["  prediction id", "live", "shadow", "true", "distance", "question"]]
    for each in disagreements:
        sides = (f"{each[side]['prediction']} ({each[side]['confidence']:.2f})" for side in ("live", "shadow"))
        true = "" if each["label"] is None else str(each["label"])
        rows.append([f"  {each['prediction_id']}", *sides, true, f"{each['distance']:.3f}", question(each["input"])])
    return table(rows)


def with_interval(found: dict[str, Any], form: str) -> str:
    from scripts.records.page import with_interval

    return with_interval(found, form)
