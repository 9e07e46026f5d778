"""What the autoscaler saw and decided last; nothing where none ever ran in this state folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marctl.core.errors import UserError
from marctl.core.sole import holder
from marctl.stack.autoscaler import FIRST_START_S, AutoscalerReport, Scaled
from marctl.stack.state import State, read

LABELS = ("model", "version")


class AutoscalerFigures:
    """Of one state folder."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        report = None
        with suppress(UserError, OSError):
            report = read(self._state.autoscaler_report, AutoscalerReport)
        if report is None:
            return
        there = holder(self._state.autoscaler_lock) is not None
        yield GaugeMetricFamily("marctl_autoscaler_up", "1 while an autoscaler runs.", there)
        yield GaugeMetricFamily("marctl_autoscaler_last_look_timestamp_seconds", "In seconds since 1970.", report.time)
        yield from states(report.versions)
        yield from changes(report.versions)


def states(versions: list[Scaled]) -> Iterator[Metric]:
    values: dict[tuple[str, str], list[float]] = {
        ("marctl_autoscaler_workers_wanted", "Workers that the autoscaler wants."): [v.wanted for v in versions],
        ("marctl_autoscaler_workers_ready", "Workers that could answer at its last look."): [v.ready for v in versions],
        ("marctl_autoscaler_workers_demanded", "Workers that the load alone takes."): [v.demand for v in versions],
        ("marctl_autoscaler_worker_start_seconds", "What the last start took, 10 before the first."): [
            v.start_s or FIRST_START_S for v in versions
        ],
    }
    for (name, text), numbers in values.items():
        family = GaugeMetricFamily(name, text, labels=LABELS)
        for each, number in zip(versions, numbers, strict=True):
            family.add_metric((each.model, each.version), number)
        yield family
    reasons = GaugeMetricFamily("marctl_autoscaler_reason", "1 for why it wants so many.", labels=(*LABELS, "reason"))
    for each in versions:
        reasons.add_metric((each.model, each.version, each.kind), 1)
    yield reasons


def changes(versions: list[Scaled]) -> Iterator[Metric]:
    family = CounterMetricFamily("marctl_autoscaler_changes", "Changes of the workers.", labels=(*LABELS, "direction"))
    for each in versions:
        family.add_metric((each.model, each.version, "up"), each.ups)
        family.add_metric((each.model, each.version, "down"), each.downs)
    yield family
    removed = CounterMetricFamily("marctl_autoscaler_workers_removed", "Workers that were taken away.", labels=LABELS)
    for each in versions:
        removed.add_metric((each.model, each.version), each.removed)
    yield removed
