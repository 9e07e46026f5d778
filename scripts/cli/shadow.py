"""`marctl shadow`: compares the versions that answer copies of requests with those that answer clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.group import Group
from marctl.cli.output import FOLDER, common, note, result, table
from marctl.core.words import counted

if TYPE_CHECKING:
    from marctl.records.shadow import Joined


@click.group(cls=Group)
def shadow() -> None:
    """Compare shadow versions with the live ones.

    `marctl route shadow` sends them copies of requests.

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
    """Compare shadow answers with those that clients got: agreement, scores, latency, failures, disagreements.

    Example: marctl shadow report --undrained --html shadow.html
    """
    from marctl.records import shadow as comparing
    from marctl.records.declarations import Declarations
    from marctl.records.page import page
    from marctl.records.reader import read
    from marctl.records.streams import answering, connect
    from marctl.stack.state import State

    home = State(state)
    folder = source or home.prediction_log
    declarations = Declarations(folder)
    client = connect(home) if undrained else None
    with answering():
        if client is not None:
            declarations.learn(client)
        log = read(
            folder,
            model=model,
            since=moment("--since", since),
            until=moment("--until", until),
            columns=[*comparing.COLUMNS, *declarations.column_names(model)],
            client=client,
        )
    joined = comparing.join(log, declarations)
    require_pairs(joined, folder, undrained)
    summaries = [comparing.summary(each, strongest) for each in joined.comparisons]
    left_out = remarks(joined)
    if page_file is not None:
        page_file.write_text(page(joined.comparisons, summaries, left_out), encoding="utf-8")
        note(f"the page is {page_file}")
    content = {"comparisons": summaries, "unpaired": joined.unpaired, "ambiguous": joined.ambiguous}
    result(content, "\n\n".join([*map(describe, summaries), *([left_out] if left_out else [])]))


def moment(option: str, text: str | None) -> Any:
    from marctl.records.reader import moment

    try:
        return None if text is None else moment(text)
    except ValueError as err:
        raise click.UsageError(f"{option}: expected 30m, 2h, 7d or 2026-11-21T08:00, got {text!r}") from err


def require_pairs(joined: Joined, folder: Path, undrained: bool) -> None:
    from marctl.core.errors import UserError

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
    from marctl.records.page import clock, failures

    head = (
        f"{found['model']}: {found['live']} live, {found['shadow']} its shadow, {counted(found['pairs'], 'question')}"
    )
    if not found["pairs"]:
        return f"{head}\n  {failures(found)}"
    rows = [[f"  {name}", value] for name, value in figures(found)]
    head += f", {clock(found['since'])} to {clock(found['until'])} UTC\n"
    return f"{head}{table(rows)}\n{strongest_of(found)}"


def figures(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values, one line each."""
    from marctl.records.page import failures, with_interval

    low, high = found["agreement_interval"]
    yield (
        f"same {found['compared']}",
        f"{100 * found['agreement']:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}",
    )
    if found["score_shift"] is not None:
        yield "its score", f"{with_interval(found['score_shift'], '{:+.4f}')} with the shadow"
    else:
        for name, difference in found["differences"].items():
            if difference["mean"] is not None:
                yield name, f"{with_interval(difference, '{:+.4f}')} with the shadow"
    latency = found["latency_ms"]
    if latency["difference"]["mean"] is not None:
        times = (f"{side} {latency[side]['p50']:.1f} / {latency[side]['p95']:.1f} ms" for side in ("live", "shadow"))
        yield "time, p50 / p95", ", ".join(times)
    if any(found["failed"].values()):
        yield "failures", failures(found)
    if (labelled := found["labelled"]) is not None:
        form = "{:.4g}" if labelled["measure"] == "mean absolute error" else "{:.1%}"
        sides = ", ".join(f"{side} {form.format(labelled[side])}" for side in ("live", "shadow"))
        yield labelled["measure"], f"{sides} of {labelled['pairs']:,} with a true label"


def strongest_of(found: dict[str, Any]) -> str:
    from marctl.records.page import question, said

    disagreements = found["strongest_disagreements"]
    if not disagreements:
        return "  no question was answered differently"
    rows = [["  prediction id", "live", "shadow", "true", "distance", "question"]]
    for each in disagreements:
        true = "" if each["label"] is None else str(each["label"])
        distance = "" if each["distance"] is None else f"{each['distance']:.3f}"
        sides = (said(each[side]) for side in ("live", "shadow"))
        rows.append([f"  {each['prediction_id']}", *sides, true, distance, question(each["input"])])
    return table(rows)
