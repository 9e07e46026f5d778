"""A plot's legend covers nothing that is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from loadtest import report
from marctl.core.page import legend


def load_test(figure: Figure, axes: Any) -> None:
    report.drawn(figure, axes)


@pytest.mark.parametrize("place", [lambda _, axes: legend(axes), load_test])
def test_a_legend_stands_outside_its_plot(place: Callable[[Figure, Any], None]) -> None:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for name in ("answers a second", "errors a second", "p50", "p99", "whole machine"):
        axes.plot([0, 1], [0, 1], label=name)
    place(figure, axes)
    figure.draw_without_rendering()
    shown = axes.get_legend().get_window_extent()
    assert not shown.overlaps(axes.bbox)
    assert figure.bbox.containsx(shown.x0)
    assert figure.bbox.containsy(shown.y0)
    assert figure.bbox.containsy(shown.y1)
