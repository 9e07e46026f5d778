from __future__ import annotations

from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from marctl.stack.autoscaler import AutoscalerReport, Scaled
from marctl.stack.metrics.autoscaler import AutoscalerFigures
from marctl.stack.state import State


def page(state: State) -> str:
    registry = CollectorRegistry()
    registry.register(AutoscalerFigures(state))
    return generate_latest(registry).decode()


def test_a_report_becomes_figures_by_version(tmp_path: Path) -> None:
    state = State(tmp_path)
    scaled = Scaled(
        "mcqa", "2.0", wanted=3, ready=2, kind="memory", reason="no room", demand=4.5, ups=2, downs=1, removed=2
    )
    state.autoscaler_report.write_bytes(msgspec.json.encode(AutoscalerReport(1e9, [scaled])))
    text = page(state)
    who = 'model="mcqa",version="2.0"'
    assert f"marctl_autoscaler_workers_wanted{{{who}}} 3.0" in text
    assert f"marctl_autoscaler_workers_ready{{{who}}} 2.0" in text
    assert f"marctl_autoscaler_workers_demanded{{{who}}} 4.5" in text
    assert 'marctl_autoscaler_reason{model="mcqa",reason="memory",version="2.0"} 1.0' in text
    assert 'marctl_autoscaler_changes_total{direction="up",model="mcqa",version="2.0"} 2.0' in text
    assert f"marctl_autoscaler_workers_removed_total{{{who}}} 2.0" in text
    assert "marctl_autoscaler_up 0.0" in text, "nobody holds its lock"


def test_no_report_and_a_damaged_one_are_no_figures(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert page(state) == ""
    state.autoscaler_report.write_text("{")
    assert page(state) == ""
