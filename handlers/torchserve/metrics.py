"""What a worker counts, reported to TorchServe's metrics page at most once a second.

Each reported value is a log line that the Java side parses with three regular expressions; one a batch would cost more
than the counting is worth.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handlers.core.task import Reply

REPORT_EVERY_S = 1.0
NAMES = ("handler_batches_total", "handler_requests_total", "handler_errors_total", "handler_milliseconds_total")
"""Counters that metrics.yaml declares, by version, model and level.

Errors are answers of 400 and above; milliseconds are spent in the handler; the log's are records and labels.
"""


class WorkerCounts:
    """Counts batches and their requests; a report is sent with the first batch that ends a second after the last."""

    def __init__(
        self,
        report: Callable[[dict[str, int]], None],
        now: Callable[[], float] = time.monotonic,
        totals: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`totals` tells what others count since the start of the worker (`..._total`), and states as they are."""
        self._report = report
        self._now = now
        self._totals = totals
        self._told: dict[str, int] = {}
        self._counts: dict[str, float] = dict.fromkeys(NAMES, 0)
        self._reported = now()

    def add(self, replies: Sequence[Reply], seconds: float) -> None:
        """Count one batch."""
        errors = sum(reply.code >= 400 for reply in replies)
        for name, value in zip(NAMES, (1, len(replies), errors, seconds * 1000), strict=True):
            self._counts[name] += value
        now = self._now()
        if now - self._reported >= REPORT_EVERY_S:
            totals = dict(self._totals())
            told = {name: value for name, value in self._told.items() if is_count(name)}
            whole = {name: int(count) for name, count in self._counts.items()}
            counts = whole | {name: value - told.get(name, 0) for name, value in totals.items()}
            self._report({name: value for name, value in counts.items() if value or not is_count(name)})
            # A batch may take less than a millisecond: what is left of one is in the next report.
            self._counts = {name: count - whole[name] for name, count in self._counts.items()}
            self._told = totals
            self._reported = now


def is_count(name: str) -> bool:
    return name.endswith("_total")


def torchserve_report(context: Any, model: str, version: str) -> Callable[[dict[str, int]], None]:
    """A report through the metrics of a TorchServe context; those that its metrics.yaml lacks are left out.

    Source: ts/metrics/metric_cache_yaml_impl.py, 0.12.0.
    """
    from ts.metrics.metric_type_enum import MetricTypes

    known = context.metrics.cache
    declared = known.get(MetricTypes.COUNTER, {}) | known.get(MetricTypes.GAUGE, {})

    def report(counts: dict[str, int]) -> None:
        for name, value in counts.items():
            if name in declared:
                declared[name].add_or_update(value, [version, model, "Model"])

    return report


def quiet_server_metrics() -> None:
    """Keep TorchServe's own worker code from writing its gauge of the last batch's time after every batch."""
    logging.getLogger("ts.metrics.caching_metric").addFilter(
        lambda record: not str(record.msg).startswith("[METRICS]PredictionTime")
    )
