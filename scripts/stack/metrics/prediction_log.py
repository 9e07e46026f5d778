"""How the prediction log is, as its keeper last saw it (scripts/records/keeper.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marctl.core.errors import UserError
from marctl.records.keeper import figures_of


class PredictionLogFigures:
    """Of one folder; nothing before the first drain."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        with suppress(UserError, OSError):
            figures = figures_of(self._folder)
            if figures is None:
                return
            yield CounterMetricFamily("marctl_log_drained_records", "Records in files.", figures.predictions)
            yield GaugeMetricFamily("marctl_log_missing_records", "Counted by workers, never seen.", figures.lost)
            yield GaugeMetricFamily("marctl_log_spilled_bytes", "In spill files.", figures.spilled_bytes)
            yield GaugeMetricFamily("marctl_log_kept_bytes", "In files.", figures.kept_bytes)
            if figures.undrained is not None:
                yield GaugeMetricFamily("marctl_log_undrained_records", "In Redis.", figures.undrained)
