"""Jobs of the batch service, as it counts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec
import requests
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marctl.core.batch_jobs import FIGURES_PATH, JobFigures
from marctl.core.http import local_session


class BatchJobFigures:
    """No figure while the service does not answer."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._url, self._timeout_s = f"http://{address}{FIGURES_PATH}", timeout_s

    def collect(self) -> Iterator[Metric]:
        with suppress(requests.RequestException, msgspec.DecodeError), local_session() as session:
            answer = session.get(self._url, timeout=self._timeout_s)
            yield from families(msgspec.json.decode(answer.content, type=JobFigures))


def families(figures: JobFigures) -> Iterator[Metric]:
    unfinished = GaugeMetricFamily("marctl_batch_jobs", "Batch jobs that are not over.", labels=("status",))
    for status, count in figures.unfinished.items():
        unfinished.add_metric((status,), count)
    ended = CounterMetricFamily("marctl_batch_jobs_ended", "Batch jobs that are over.", labels=("status",))
    for status, count in figures.ended.items():
        ended.add_metric((status,), count)
    rows = CounterMetricFamily("marctl_batch_rows", "Rows of batch jobs that are done.", labels=("outcome",))
    rows.add_metric(("predicted",), figures.predicted_rows)
    rows.add_metric(("failed",), figures.failed_rows)
    yield from (unfinished, ended, rows)
    yield GaugeMetricFamily("marctl_batch_rows_left", "Of batch jobs that run.", figures.rows_left)
    yield GaugeMetricFamily("marctl_batch_rows_per_second", "Of batch jobs that run.", figures.rows_per_s)
