"""What a worker counts, in files that whoever serves the stack's metrics page reads (scripts/stack/metrics_page.py).

TorchServe's own way, a log line per value that its Java side takes apart with three regular expressions, has no
histograms with buckets of one's choice, and costs 14 microseconds a value, of Python and Java together. Here a value is
16 bytes in a memory-mapped file that outlives its process (prometheus_client's multiprocess mode): all figures of a
batch take 20 microseconds, 53 for a batch of 32 requests.

Where the environment names no folder, as under a TorchServe that was started by hand, nobody reads the figures.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from handlers.core.messages import Reply, Request
from handlers.core.pipeline import Pipeline, queue_ms

log = logging.getLogger(__name__)
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemin")
"""How the names of a process's files begin: kind of figure, and how gauges of several living processes are joined."""
FILE_BYTES = 1 << 16
"""prometheus_client's first size of a file, several times what one worker's figures take."""
FLUSH_S = 1.0
LABELS = ("model", "version")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TEXTS = {
    "handler_batches_total": "Batches that workers answered.",
    "handler_requests_total": "Requests in these batches.",
    "handler_errors_total": "Answers of 400 and above.",
    "handler_milliseconds_total": "Time that workers spent on batches.",
    "handler_log_written_total": "Records and labels that the prediction log took.",
    "handler_log_spilled_total": "Records and labels that went to a spill file, because Redis was away or full.",
    "handler_log_dropped_total": "Records and labels that the prediction log lost.",
    "handler_cache_hits_total": "Questions that the cache answered.",
    "handler_cache_misses_total": "Questions that the cache could not answer.",
    "handler_cache_computed_total": "Questions that the model was asked on a miss; equal ones of a batch once.",
    "handler_cache_stale_total": "Questions answered by an expired entry, because the model failed.",
    "handler_cache_errors_total": "Calls to Redis that failed, and entries that could not be read.",
    "handler_cache_asking": "1, or 0 while a worker leaves a Redis alone that did not answer.",
    "handler_features_lookups_total": "Entities whose stored features were looked up.",
    "handler_features_unanswered_total": "Of these, entities for which Redis did not answer; stand-ins were used.",
    "handler_features_missing_total": "Stored features that were not there.",
    "handler_features_stale_total": "Stored features that were too old, or of unknown age where there is a limit.",
    "handler_features_invalid_total": "Stored features that the specification refuses.",
    "handler_features_asking": "1, or 0 while a worker leaves a feature store alone that did not answer.",
    "handler_member_failures_total": "Questions that a member of an ensemble failed on, or was too late for.",
    "handler_members_missing": "Members of an ensemble that could not be loaded.",
    "handler_explanations_total": "Explanations given.",
    "handler_explanations_incomplete_total": "Explanations whose scores do not sum to the change that they explain.",
    "handler_explanation_milliseconds_total": "Time that explanations took.",
}
BATCH_COUNTS = ("handler_batches_total", "handler_requests_total", "handler_errors_total", "handler_milliseconds_total")


def reserve(environ: MutableMapping[str, str] = os.environ) -> None:
    """Take the room of this process's files; to be called before prometheus_client is first imported.

    A memory-mapped file with holes ends its process by a signal when it finds the disk full. Without room there are no
    files, and no figures of this worker.
    """
    folder = environ.get(FOLDER_VARIABLE)
    if folder is None:
        return
    try:
        for kind in KINDS:
            file = Path(folder, f"{kind}_{os.getpid()}.db")
            partial = file.with_suffix(".partial")
            with partial.open("wb") as opened:
                os.posix_fallocate(opened.fileno(), 0, FILE_BYTES)
            os.replace(partial, file)
    except OSError as err:
        log.warning("no metrics of this worker: cannot write to %s (%s)", folder, err.strerror)
        for path in Path(folder).glob(f"*_{os.getpid()}.*"):
            path.unlink(missing_ok=True)
        del environ[FOLDER_VARIABLE]


class WorkerMetrics:
    """One worker's figures."""

    def __init__(self, model: str, version: str, pipeline: Pipeline) -> None:
        """`model`: the name that it is registered under. What the pipeline's parts count is written a second later,
        for the log works on after a batch is answered."""
        self._labels = (model, version)
        self._pipeline = pipeline
        self._told: dict[str, float] = {}
        self._figures: dict[str, Any] = {name: self._figure(name) for name in BATCH_COUNTS}
        self._answered = threading.Event()
        self._make_batch_figures()
        threading.Thread(target=self._run, name="worker-metrics", daemon=True).start()

    def watch(self, answer: Callable[[Sequence[Request]], list[Reply]], requests: Sequence[Request]) -> list[Reply]:
        """The replies that `answer` gives to a batch, counted."""
        began_ms, started, computed = time.time() * 1000, time.monotonic(), self._pipeline.model_seconds
        self._inflight.inc()
        try:
            replies = answer(requests)
        finally:
            self._inflight.dec()
        seconds = time.monotonic() - started
        waits = [queue_ms(request, began_ms) for request in requests]
        self._count_requests(waits, replies, seconds)
        if self._pipeline.model_seconds > computed:
            self._inference.observe(self._pipeline.model_seconds - computed)
        self._answered.set()
        return replies

    def flush(self) -> None:
        """Write what the pipeline's parts count: `..._total` by what it grew, states as they are."""
        for name, value in self._pipeline.totals().items():
            figure = self._figures.get(name)
            if figure is None:
                figure = self._figures[name] = self._figure(name)
            if not is_count(name):
                figure.set(value)
            elif value > self._told.get(name, 0):
                figure.inc(value - self._told.get(name, 0))
            self._told[name] = value

    def _count_requests(self, waits: Sequence[float | None], replies: Sequence[Reply], seconds: float) -> None:
        known = [wait / 1000 for wait in waits if wait is not None]
        observe(self._wait, known)
        # Without the gateway a request's time begins at the worker.
        observe(self._latency, [wait + seconds for wait in known] + [seconds] * (len(waits) - len(known)))
        self._size.observe(len(replies))
        errors = 0
        for status, count in Counter(reply.code for reply in replies).items():
            self._requests.labels(*self._labels, str(status)).inc(count)
            errors += count if status >= 400 else 0
        for name, value in zip(BATCH_COUNTS, (1, len(replies), errors, seconds * 1000), strict=True):
            self._figures[name].inc(value)

    def _figure(self, name: str) -> Any:
        """A counter or a state of this worker's model."""
        from prometheus_client import Counter as Total
        from prometheus_client import Gauge

        text = TEXTS.get(name, name)
        if is_count(name):
            return Total(name, text, LABELS, registry=None).labels(*self._labels)
        return Gauge(name, text, LABELS, registry=None, multiprocess_mode="livemin").labels(*self._labels)

    def _make_batch_figures(self) -> None:
        from prometheus_client import Counter as Total
        from prometheus_client import Gauge, Histogram

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Any:
            return Histogram(name, text, LABELS, buckets=buckets, registry=None).labels(*self._labels)

        since = "From the gateway's first look at a request to"
        self._requests = Total(
            "batcher_requests_total", "Requests, by the status of their answer.", (*LABELS, "status"), registry=None
        )
        self._latency = histogram("batcher_request_latency_seconds", f"{since} the worker's answer.", SECONDS)
        self._wait = histogram("batcher_batch_wait_time_seconds", f"{since} the worker's first.", SECONDS)
        self._size = histogram("batcher_batch_size", "Requests that a worker was given at once.", SIZES)
        self._inference = histogram("batcher_inference_time_seconds", "Time of the model for a batch.", SECONDS)
        self._inflight = Gauge(
            "batcher_inflight_batches", "Batches at the workers.", LABELS, registry=None, multiprocess_mode="livesum"
        ).labels(*self._labels)

    def _run(self) -> None:
        while True:
            self._answered.wait()
            self._answered.clear()
            time.sleep(FLUSH_S)
            try:
                self.flush()
            except Exception:
                log.exception("the worker's figures could not be written")


def observe(histogram: Any, values: Iterable[float]) -> None:
    """Many values at once: a bucket is written once, whatever came into it. `histogram.observe` for each would take ten
    times as long for a batch of 32."""
    total, buckets = 0.0, Counter[int]()
    for value in values:
        total += value
        buckets[bisect_left(histogram._upper_bounds, value)] += 1
    if buckets:
        histogram._sum.inc(total)
    for bucket, count in buckets.items():
        histogram._buckets[bucket].inc(count)


def is_count(name: str) -> bool:
    return name.endswith("_total")
