"""What a worker counts, reported to TorchServe's metrics page at most once a second.

Each reported value is a log line that the Java side parses with three regular expressions; one a batch would cost more
than the counting is worth.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handlers.core.messages import Reply

log = logging.getLogger(__name__)
REPORT_EVERY_S = 1.0
NAMES = ("handler_batches_total", "handler_requests_total", "handler_errors_total", "handler_milliseconds_total")
"""Counters that metrics.yaml declares, by version, model and level.

Errors are answers of 400 and above; milliseconds are spent in the handler; the log's are records and labels.
"""


class WorkerCounts:
    """Counts batches and their requests; a thread reports once a second, while there is something to report."""

    def __init__(
        self, report: Callable[[dict[str, int]], None], totals: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        """`totals` tells what others count since the start of the worker (`..._total`), and states as they are."""
        self._report = report
        self._totals = totals
        self._counts: dict[str, float] = dict.fromkeys(NAMES, 0)
        self._told: dict[str, int] = {}
        self._lock = threading.Lock()
        self._counted = threading.Event()
        threading.Thread(target=self._run, name="worker-counts", daemon=True).start()

    def add(self, replies: Sequence[Reply], seconds: float) -> None:
        """Count one batch."""
        errors = sum(reply.code >= 400 for reply in replies)
        with self._lock:
            for name, value in zip(NAMES, (1, len(replies), errors, seconds * 1000), strict=True):
                self._counts[name] += value
        self._counted.set()

    def flush(self) -> None:
        """Report what has been counted since the last report, and states."""
        with self._lock:
            now = {name: int(count) for name, count in self._counts.items()} | dict(self._totals())
        changed = {name: value - self._told.get(name, 0) for name, value in now.items() if is_count(name)}
        states = {name: value for name, value in now.items() if not is_count(name)}
        self._told = now
        self._report({name: value for name, value in changed.items() if value} | states)

    def _run(self) -> None:
        while True:
            self._counted.wait()
            self._counted.clear()
            time.sleep(REPORT_EVERY_S)
            try:
                self.flush()
            except Exception:
                log.exception("the worker's counts could not be reported")


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
