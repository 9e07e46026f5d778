"""The shadow comparison as one HTML file: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scripts.core.errors import UserError
from scripts.records.shadow import SIDES, Comparison, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIVE, SHADOW, NEUTRAL = "#0072B2", "#D55E00", "#666666"
"""Told apart by people of every colour vision, and in grey by their lightness (Okabe and Ito 2008)."""
POINTS = 5_000
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top; max-width: 30rem; overflow-wrap: break-word }
th { border-bottom: 2px solid #999; white-space: nowrap }
.wide { overflow-x: auto }
td { border-bottom: 1px solid #ddd }
.note { color: #555 }
svg { max-width: 100%; height: auto }
"""


def page(comparisons: Sequence[Comparison], summaries: Sequence[dict[str, Any]], note: str) -> str:
    """The whole file; `note` says what was left out."""
    parts = [section(comparison, found) for comparison, found in zip(comparisons, summaries, strict=True)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Shadow comparison</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f'<h1>Shadow comparison</h1><p class="note">{text(note)}</p>{"".join(parts)}</body></html>\n'
    )


def section(comparison: Comparison, found: dict[str, Any]) -> str:
    low, high = found["agreement_interval"]
    return (
        f"<h2>{text(found['model'])}: {text(found['live'])} live, {text(found['shadow'])} as its shadow</h2>"
        f"<p>{found['pairs']:,} questions answered by both, {clock(found['since'])} to {clock(found['until'])} UTC. "
        f"The same choice in <b>{percent(found['agreement'])}</b> of them (95 % interval {percent(low)} to "
        f"{percent(high)}).</p>{figures(found)}{plots(comparison.pairs)}{disagreements(found)}"
    )


def figures(found: dict[str, Any]) -> str:
    latency = found["latency_ms"]
    rows = [
        ["p50, p95, p99 in the worker, ms", *(", ".join(f"{v:.1f}" for v in latency[s].values()) for s in SIDES)],
        ["choices, by place", *(", ".join(f"{k}: {v:,}" for k, v in found["choices"][s].items()) for s in SIDES)],
        ["from the cache", *(f"{found['cached'][s]:,}" for s in SIDES)],
    ]
    if (labelled := found["labelled"]) is not None:
        shares = [f"{percent(labelled[s])} ({interval(labelled[f'{s}_interval'], percent)})" for s in SIDES]
        rows.append([f"right, of {labelled['pairs']:,} with a true label", *shares])
    shift, difference = found["score_shift"], latency["difference"]
    more = [
        f"probability of the live choice {with_interval(shift, '{:+.4f}')}",
        f"time {with_interval(difference, '{:+.1f}')} ms",
    ]
    if labelled is not None:
        more.append(f"share that is right {with_interval(labelled['difference'], '{:+.1%}')}")
    averages = f"Shadow minus live, on average, with its 95 % interval: {'; '.join(more)}."
    return table(["", "live", "shadow"], rows) + f"<p>{text(averages)}</p>"


def plots(pairs: Sequence[Pair]) -> str:
    """Three pictures side by side, as SVG."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as err:
        raise UserError("the HTML page needs matplotlib; pip install 'torchserve-marctl[log]'") from err
    # Letters stay letters, and the same figures give the same bytes.
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "shadow", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    ):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        scores, shifts, latencies = figure.subplots(1, 3)
        draw_scores(scores, pairs)
        draw_shifts(shifts, pairs)
        draw_latencies(latencies, pairs)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def draw_scores(axes: Axes, pairs: Sequence[Pair]) -> None:
    """What both make of the live choice."""
    shown = pairs[:: max(1, len(pairs) // POINTS)]
    for agrees, colour, marker, name in ((True, LIVE, "o", "same choice"), (False, SHADOW, "x", "another choice")):
        some = [pair for pair in shown if pair.agrees is agrees]
        live = [pair.live["probabilities"][pair.live["prediction"]] for pair in some]
        both = [value + pair.shift for value, pair in zip(live, some, strict=True)]
        axes.scatter(live, both, s=10, c=colour, marker=marker, alpha=0.6, label=name, linewidths=1)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.8)
    axes.set(title="probability of the live choice", xlabel="live", ylabel="shadow", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="upper left")


def draw_shifts(axes: Axes, pairs: Sequence[Pair]) -> None:
    axes.hist([pair.shift for pair in pairs], bins=41, range=(-1, 1), color=SHADOW, edgecolor="white", linewidth=0.3)
    axes.axvline(0, color=NEUTRAL, linewidth=0.8)
    ticks = [-1, -0.5, 0, 0.5, 1]
    axes.set(title="shift of that probability", xlabel="shadow minus live", ylabel="questions", xticks=ticks)


def draw_latencies(axes: Axes, pairs: Sequence[Pair]) -> None:
    """Share of the questions that were answered within a time."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for side, colour, dashes in (("live", LIVE, "-"), ("shadow", SHADOW, "--")):
        times = [max(getattr(pair, side)["latency_ms"], 0.001) for pair in pairs]
        axes.ecdf(times, color=colour, linestyle=dashes, label=side)
    axes.set(title="time in the worker", xlabel="ms", ylabel="share of the questions", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right")


def disagreements(found: dict[str, Any]) -> str:
    rows = found["strongest_disagreements"]
    if not rows:
        return "<p>No question was answered differently.</p>"
    cells = [
        [
            row["prediction_id"],
            *(f"{row[side]['prediction']} ({row[side]['confidence']:.3f})" for side in SIDES),
            "" if row["label"] is None else str(row["label"]),
            f"{row['distance']:.3f}",
            question(row["input"]),
        ]
        for row in rows
    ]
    titles = ["prediction id", "live choice", "shadow's", "true", "distance", "question"]
    return "<h3>The strongest disagreements</h3>" + table(titles, cells)


def question(logged: str | None) -> str:
    """The question in words, as far as it was logged."""
    if logged is None:
        return "not logged"
    try:
        content = json.loads(logged)
        choices = "; ".join(f"{i}: {choice}" for i, choice in enumerate(content["choices"]))
        return " ".join(filter(None, [content.get("context"), content["question"]])) + f" [{choices}]"
    except (ValueError, TypeError, KeyError):
        return logged


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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


def text(content: object) -> str:
    """Clients wrote some of it."""
    return html.escape(str(content))
