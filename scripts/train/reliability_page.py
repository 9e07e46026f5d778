"""Reliability diagrams and figures as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from marctl.core.page import BLUE, NEUTRAL, document, pictures, table, text
from marctl.train.reliability import BINS, Judged, Reliability, bins_of, diagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IN_A_ROW = 3
NOTE = (
    f"Rows are put into {BINS} bins by their confidence. A dot shows a bin's share of right answers, or of events, "
    "above its mean confidence: on the line, confidence means what it says; below it, the model is too sure. The bars "
    "on the line reach as far as chance alone would take 19 of 20 dots. The step line shows how many rows a bin has. "
    "ECE is the rows' mean distance between dot and line, with half its 95 % interval; beside it, what exact "
    "confidences would show on as many rows."
)


def page(title: str, parts: Mapping[str, Mapping[str, Judged]]) -> str:
    """The whole file: a part for each version or state, with a diagram for each of its data sets."""
    return document(title, NOTE, "".join(section(name, sets) for name, sets in parts.items()))


def section(name: str, sets: Mapping[str, Judged]) -> str:
    drawn = [partial(draw, judged=judged, title=title) for title, judged in sets.items()]
    plots = "".join(pictures(drawn[i : i + IN_A_ROW]) for i in range(0, len(drawn), IN_A_ROW))
    return f"<h2>{text(name)}</h2>{figures(sets)}{plots}"


def figures(sets: Mapping[str, Judged]) -> str:
    rows = []
    for name, judged in sets.items():
        found = Reliability.of(judged)
        rows.append(
            [
                name,
                f"{found.rows:,}",
                f"{judged.hit.mean():.3f}",
                f"{judged.confidence.mean():.3f}",
                f"{found.ece:.3f} ± {found.interval:.3f}",
                f"{found.floor:.3f}",
                f"{found.brier:.3f}",
                f"{found.log_loss:.3f}",
            ]
        )
    titles = ["data set", "rows", "share right", "mean confidence", "ECE", "exact", "Brier score", "log loss"]
    return table(titles, rows)


def draw(axes: Axes, judged: Judged, title: str) -> None:
    """A reliability diagram (Murphy and Winkler 1977), with consistency bars."""
    bins = diagram(judged)
    at, shares = [one.confidence for one in bins], [one.share for one in bins]
    most = max(one.rows for one in bins)
    axes.stairs([count / most * 0.25 for count in counts(judged)], [i / BINS for i in range(BINS + 1)], color=NEUTRAL)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.8)
    axes.errorbar(at, at, yerr=[one.spread for one in bins], fmt="none", ecolor=NEUTRAL, capsize=2, linewidth=0.8)
    axes.plot(at, shares, "o-", color=BLUE, markersize=4)
    axes.set(
        title=f"{title}, {len(judged):,} rows", xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1)
    )


def counts(judged: Judged) -> list[int]:
    """Rows of each bin, empty ones included."""
    return [int((bins_of(judged.confidence) == number).sum()) for number in range(BINS)]
