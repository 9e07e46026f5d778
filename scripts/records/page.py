"""The shadow comparison as one HTML file, which loads nothing from elsewhere and runs no script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from marctl.core.page import BLUE, NEUTRAL, ORANGE, document, legend, pictures, table, text
from marctl.records.shadow import SIDES, Comparison, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIVE, SHADOW = BLUE, ORANGE
POINTS = 5_000


def page(comparisons: Sequence[Comparison], summaries: Sequence[dict[str, Any]], note: str) -> str:
    """The whole file; `note` says what was left out."""
    parts = [section(comparison, found) for comparison, found in zip(comparisons, summaries, strict=True)]
    return document("Shadow comparison", note, "".join(parts))


def section(comparison: Comparison, found: dict[str, Any]) -> str:
    head = f"<h2>{text(found['model'])}: {text(found['live'])} live, {text(found['shadow'])} as its shadow</h2>"
    if not comparison.pairs:
        return f"{head}<p>{text(failures(found))}</p>"
    low, high = found["agreement_interval"]
    return (
        f"{head}<p>{found['pairs']:,} questions answered by both, {clock(found['since'])} to {clock(found['until'])} "
        f"UTC. The same {text(found['compared'])} in <b>{percent(found['agreement'])}</b> of them (95 % interval "
        f"{percent(low)} to {percent(high)}). {text(failures(found))}</p>"
        f"{figures(found)}{plots(comparison)}{disagreements(found)}"
    )


def failures(found: dict[str, Any]) -> str:
    """What one side or the other did not answer."""
    failed = found["failed"]
    return f"Not answered: {failed['live']:,} by the live version, {failed['shadow']:,} by the shadow."


def figures(found: dict[str, Any]) -> str:
    rows = [["p50, p95, p99 in the worker, ms", *(milliseconds(found["latency_ms"][s].values()) for s in SIDES)]]
    if found["values"] is not None:
        counts = (", ".join(f"{k}: {v:,}" for k, v in found["values"][s].items()) for s in SIDES)
        rows.append([f"{found['compared']}, how often", *counts])
    rows.append(["from the cache", *(f"{found['cached'][s]:,}" for s in SIDES)])
    if (labelled := found["labelled"]) is not None:
        name = f"{labelled['measure']}, of {labelled['pairs']:,} with a true label"
        rows.append([name, *(measured(labelled, side) for side in SIDES)])
    averages = f"Shadow minus live, on average, with its 95 % interval: {'; '.join(changes(found))}."
    return table(["", "live", "shadow"], rows) + f"<p>{text(averages)}</p>"


def measured(labelled: dict[str, Any], side: str) -> str:
    if f"{side}_interval" not in labelled:
        return f"{labelled[side]:.4g}"
    return f"{percent(labelled[side])} ({interval(labelled[f'{side}_interval'], percent)})"


def changes(found: dict[str, Any]) -> list[str]:
    """The mean differences, each with its interval."""
    more = []
    if found["score_shift"] is not None:
        more.append(f"score of the live {found['compared']} {with_interval(found['score_shift'], '{:+.4f}')}")
    named = {name: value for name, value in found["differences"].items() if value["mean"] is not None}
    more += [f"{name} {with_interval(value, '{:+.4f}')}" for name, value in named.items()]
    if (difference := found["latency_ms"]["difference"])["mean"] is not None:
        more.append(f"time {with_interval(difference, '{:+.1f}')} ms")
    if (labelled := found["labelled"]) is not None:
        form = "{:+.4f}" if labelled["measure"] == "mean absolute error" else "{:+.1%}"
        more.append(f"{labelled['measure']} {with_interval(labelled['difference'], form)}")
    return more


def plots(comparison: Comparison) -> str:
    """Pictures side by side, as SVG."""
    drawn = [draw_latencies]
    if any(pair.scores is not None for pair in comparison.pairs):
        drawn = [draw_scores, draw_shifts, draw_latencies]
    return pictures([partial(draw, pairs=comparison.pairs) for draw in drawn])


def draw_scores(axes: Axes, pairs: Sequence[Pair]) -> None:
    """How both score the live version's prediction."""
    shown = [pair for pair in pairs[:: max(1, len(pairs) // POINTS)] if pair.scores is not None]
    name = pairs[0].primary.name
    for agrees, colour, marker, words in ((True, LIVE, "o", f"same {name}"), (False, SHADOW, "x", f"another {name}")):
        scores = [pair.scores for pair in shown if pair.agrees is agrees and pair.scores is not None]
        live, shadow = [one for one, _ in scores], [other for _, other in scores]
        axes.scatter(live, shadow, s=10, c=colour, marker=marker, alpha=0.6, label=words, linewidths=1)
    axes.axline((0, 0), slope=1, color=NEUTRAL, linewidth=0.8)
    axes.set(title=f"score of the live {name}", xlabel="live", ylabel="shadow")
    legend(axes)


def draw_shifts(axes: Axes, pairs: Sequence[Pair]) -> None:
    shifts = [pair.shift for pair in pairs if pair.shift is not None]
    reach = max(map(abs, shifts), default=0.0) or 1.0
    axes.hist(shifts, bins=41, range=(-reach, reach), color=SHADOW, edgecolor="white", linewidth=0.3)
    axes.axvline(0, color=NEUTRAL, linewidth=0.8)
    axes.set(title="shift of that score", xlabel="shadow minus live", ylabel="questions")


def draw_latencies(axes: Axes, pairs: Sequence[Pair]) -> None:
    """Share of the questions that were answered within a time."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for side, colour, dashes in (("live", LIVE, "-"), ("shadow", SHADOW, "--")):
        times = [max(getattr(pair, side)["handler_ms"] or 0, 0.001) for pair in pairs]
        axes.ecdf(times, color=colour, linestyle=dashes, label=side)
    axes.set(title="time in the worker", xlabel="ms", ylabel="share of the questions", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    legend(axes)


def disagreements(found: dict[str, Any]) -> str:
    rows = found["strongest_disagreements"]
    if not rows:
        return "<p>No question was answered differently.</p>"
    cells = [
        [
            row["prediction_id"],
            *(said(row[side]) for side in SIDES),
            "" if row["label"] is None else str(row["label"]),
            "" if row["distance"] is None else f"{row['distance']:.3f}",
            question(row["input"]),
        ]
        for row in rows
    ]
    name = found["compared"]
    titles = ["prediction id", f"live {name}", "shadow's", "true", "distance", "question"]
    return "<h3>The strongest disagreements</h3>" + table(titles, cells)


def said(outcome: dict[str, Any]) -> str:
    """A prediction, and the first number beside it in brackets."""
    first, *others = outcome.values()
    number = next((value for value in others if isinstance(value, float)), None)
    return short(first) if number is None else f"{short(first)} ({number:.3f})"


def short(value: object) -> str:
    """A value in one line."""
    if isinstance(value, list):
        return f"[{', '.join(f'{each:.4g}' for each in value[:4])}{', …' * (len(value) > 4)}]"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def question(logged: str | None) -> str:
    """The question in words, as far as it was logged: texts as they are, lists numbered, other fields by name."""
    if logged is None:
        return "not logged"
    try:
        content = json.loads(logged)
    except ValueError:
        return logged
    if not isinstance(content, dict):
        return logged
    return " ".join(words(name, value) for name, value in content.items() if value is not None)


def words(name: str, value: object) -> str:
    """One field of a question."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return f"[{'; '.join(f'{i}: {each}' for i, each in enumerate(value))}]"
    return f"{name}={json.dumps(value, ensure_ascii=False)}"


def milliseconds(values: Iterable[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.1f}" for value in values)


def with_interval(found: dict[str, Any], form: str) -> str:
    centre = form.format(found["mean"])
    return f"{centre} ({interval(found['interval'], form.format)})" if found["interval"] else centre


def interval(bounds: tuple[float, float] | None, form: Any) -> str:
    return f"{form(bounds[0])} to {form(bounds[1])}" if bounds else ""


def clock(moment: str) -> str:
    """To the second, of ISO 8601 in UTC."""
    return moment.partition(".")[0].replace("T", " ")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
