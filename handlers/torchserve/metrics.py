"""What a worker counts, in files that whoever serves the stack's metrics page reads (scripts/stack/metrics/).

TorchServe's own way, a log line per value that its Java side takes apart with three regular expressions, has no
histograms with buckets of one's choice, and costs 14 microseconds a value, of Python and Java together. Here a value is
16 bytes in a memory-mapped file that outlives its process (prometheus_client's multiprocess mode). What that costs:
`python -m loadtest.metrics_cost`.

Where the environment names no folder, as under a TorchServe that was started by hand, nobody reads the figures.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from marctl_handlers.core.messages import ROLE_HEADER, SAMPLE_HEADER, Reply, Request
from marctl_handlers.core.pipeline import Exchange, Pipeline, Times
from marctl_handlers.core.task import Task
from marctl_handlers.torchserve.exemplars import Exemplars
from marctl_handlers.torchserve.predictions import Tally, classifier

log = logging.getLogger(__name__)
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemin")
"""How the names of a process's files begin: kind of figure, and how gauges of several living processes are joined."""
FILE_BYTES = 1 << 18
"""Of each file, several times what one worker's figures take in all roles."""
FLUSH_S = 1.0
LABELS = ("model", "version")
ROLES = frozenset({"split", "fallback", "shadow", "pinned", "explain", "other"})
"""Why a version was asked, as the gateway says it."""
SAMPLE, DIRECT, OTHER = "sample", "direct", "other"
"""Roles of the version's own samples, and of what came past the gateway."""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
PARTS = ("features", "cache", "inference", "encoding")
"""Stages that all requests of a batch go through together, as Times names them."""
QUEUE, BATCH_WAIT, TOTAL = "queue", "batch_wait", "total"
TEXTS = {
    "handler_batches_total": "Batches that workers answered.",
    "handler_requests_total": "Requests in these batches.",
    "handler_seconds_total": "Time that workers spent on batches.",
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
    "handler_shared_loads_total": "Versions that shared workers loaded.",
    "handler_shared_load_seconds_total": "Time that these loads took.",
    "handler_shared_load_failures_total": "Loads that failed.",
    "handler_shared_evictions_total": "Versions that left a shared worker's memory for others.",
    "handler_shared_cold_requests_total": "Requests that found their version not loaded.",
    "handler_shared_cold_refused_total": "Those of them that could not wait for the load.",
    "handler_shared_resident_versions": "Versions that shared workers hold.",
    "handler_shared_resident_bytes": "Memory that these take.",
    "handler_explanations_total": "Explanations given.",
    "handler_explanations_incomplete_total": "Explanations whose scores do not sum to the change that they explain.",
    "handler_explanation_seconds_total": "Time that explanations took.",
    "handler_truncated_total": "Answers to texts that were too long and cut.",
    "handler_imputed_total": "Values that were missing in questions and filled in.",
    "handler_clipped_total": "Values that were outside of their range and held to it.",
}
SUMMED = ("handler_shared_resident_versions", "handler_shared_resident_bytes")
"""States that are added up over the workers."""
BATCH_COUNTS = ("handler_batches_total", "handler_requests_total", "handler_seconds_total")


def reserve(environ: MutableMapping[str, str] = os.environ, file_bytes: int = FILE_BYTES) -> None:
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
                os.posix_fallocate(opened.fileno(), 0, file_bytes)
            os.replace(partial, file)
    except OSError as err:
        log.warning("no metrics of this worker: cannot write to %s (%s)", folder, err.strerror)
        for path in Path(folder).glob(f"*_{os.getpid()}.*"):
            path.unlink(missing_ok=True)
        del environ[FOLDER_VARIABLE]


class Counting(Protocol):
    """What a worker serves, and what its parts count."""

    def totals(self) -> Mapping[str, float]: ...


class BatchMetrics:
    """One worker's figures of its batches, and of what it serves."""

    def __init__(self, model: str, version: str, served: Counting) -> None:
        """`model`: the name that it is registered under. What the served parts count is written a second later, for the
        log works on after a batch is answered."""
        self._labels = (model, version)
        self._served = served
        self._told: dict[str, float] = {}
        self._figures: dict[str, Any] = {name: self._figure(name) for name in BATCH_COUNTS}
        self._began = 0.0
        self._answered = threading.Event()
        self._make_batch_figures()
        threading.Thread(target=self._run, name="worker-metrics", daemon=True).start()

    def watch(self, answer: Callable[[Sequence[Request]], list[Reply]], requests: Sequence[Request]) -> list[Reply]:
        """The replies that `answer` gives to a batch, counted."""
        self._began = time.monotonic()
        self._inflight.inc()
        try:
            replies = answer(requests)
        finally:
            self._inflight.dec()
        self._count_batch(requests, replies, time.monotonic() - self._began)
        self._answered.set()
        return replies

    def flush(self) -> None:
        """Write what the served parts count: `..._total` by what it grew, states as they are."""
        for name, value in self._served.totals().items():
            figure = self._figures.get(name)
            if figure is None:
                figure = self._figures[name] = self._figure(name)
            if not is_count(name):
                figure.set(value)
            elif value > self._told.get(name, 0):
                figure.inc(value - self._told.get(name, 0))
            self._told[name] = value

    def _count_batch(self, requests: Sequence[Request], replies: Sequence[Reply], seconds: float) -> None:
        known = [request.queue_ms / 1000 for request in requests if request.queue_ms is not None]
        observe(self._wait, known)
        # Without the gateway a request's time begins at the worker.
        observe(self._latency, [wait + seconds for wait in known] + [seconds] * (len(requests) - len(known)))
        self._size.observe(len(replies))
        self._count_statuses(requests, replies)
        for name, value in zip(BATCH_COUNTS, (1, len(replies), seconds), strict=True):
            self._figures[name].inc(value)

    def _count_statuses(self, requests: Sequence[Request], replies: Sequence[Reply]) -> None:
        for status, count in Counter(reply.code for reply in replies).items():
            self._requests.labels(*self._labels, str(status)).inc(count)

    def _figure(self, name: str) -> Any:
        """A counter or a state of this worker's model."""
        from prometheus_client import Counter as Total
        from prometheus_client import Gauge

        text = TEXTS.get(name, name)
        if is_count(name):
            return Total(name, text, LABELS, registry=None).labels(*self._labels)
        mode: Literal["livesum", "livemin"] = "livesum" if name in SUMMED else "livemin"
        return Gauge(name, text, LABELS, registry=None, multiprocess_mode=mode).labels(*self._labels)

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


class WorkerMetrics(BatchMetrics):
    """The figures of a worker of one version."""

    def __init__(self, model: str, version: str, pipeline: Pipeline) -> None:
        """`model`: the name that it is registered under."""
        self._by_role = RoleFamilies(pipeline.task)
        self._roles: dict[str, RoleFigures] = {}
        self._exemplars = Exemplars(model, version)
        super().__init__(model, version, pipeline)
        for watched in (pipeline, pipeline.explainer):
            if watched is not None:
                watched.watcher = self

    def see(self, batch: Sequence[Exchange], times: Times) -> None:
        """Count what the pipeline did for these requests, which have their answers; called within `watch`."""
        if times.inference:
            self._inference.observe(times.inference)
        took_s = time.monotonic() - self._began
        by_role: dict[str, list[Exchange]] = defaultdict(list)
        for exchange in batch:
            by_role[role_of(exchange.request.headers)].append(exchange)
        for role, exchanges in by_role.items():
            figures = self._roles.get(role)
            if figures is None:
                figures = self._roles[role] = RoleFigures(self._by_role, (*self._labels, role), self._exemplars)
            figures.count(exchanges, times, took_s)

    def flush(self) -> None:
        """Write also the last request of each bucket."""
        super().flush()
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is not None:
            self._exemplars.write(Path(folder))


class RoleFamilies:
    """The figures that are told by model, version and role, before they are one role's."""

    def __init__(self, task: Task[Any, Any]) -> None:
        from prometheus_client import Counter as Total
        from prometheus_client import Histogram

        labels = (*LABELS, "role")

        def total(name: str, text: str, *more: str) -> Any:
            return Total(name, text, (*labels, *more), registry=None)

        self.task = task
        self.classify = classifier(task)
        stages, stage_text = (*labels, "stage"), "Time of a request, by stage."
        self.stages = Histogram("handler_stage_seconds", stage_text, stages, buckets=SECONDS, registry=None)
        self.errors = total("handler_errors_total", "Questions that were refused or failed.", "kind")
        self.predictions = total("handler_predictions_total", "Answers, by what was predicted.", "prediction")
        confidence, confidence_text = "handler_prediction_confidence_ratio", "How sure the model was of its answers."
        self.confidence = Histogram(confidence, confidence_text, labels, buckets=SHARES, registry=None)
        self.fallbacks = total("handler_fallbacks_total", "Requests that another version had failed.")
        self.marks = {
            name: total(f"handler_{name}_total", TEXTS.get(f"handler_{name}_total", name))
            for name in task.counted_fields
        }


class RoleFigures:
    """What requests of one role came to."""

    def __init__(self, families: RoleFamilies, labels: tuple[str, str, str], exemplars: Exemplars) -> None:
        self._families, self._labels, self._exemplars = families, labels, exemplars
        self._role = labels[2]
        self._stages = {stage: families.stages.labels(*labels, stage) for stage in (QUEUE, BATCH_WAIT, *PARTS, TOTAL)}
        self._fallbacks = families.fallbacks.labels(*labels)
        self._marks = {name: family.labels(*labels) for name, family in families.marks.items()}
        self._confidence = None
        if any(column.name == families.task.confidence_column for column in families.task.log_columns):
            self._confidence = families.confidence.labels(*labels)

    def count(self, exchanges: Sequence[Exchange], times: Times, took_s: float) -> None:
        """`took_s`: since the worker got the batch."""
        for part in PARTS:
            observe_alike(self._stages[part], getattr(times, part), len(exchanges))
        self._count_waits([exchange.request for exchange in exchanges], took_s)
        if self._role != SAMPLE:
            self._count_answers(exchanges)

    def _count_waits(self, requests: Sequence[Request], took_s: float) -> None:
        waits = [(each.queue_ms, each.batch_ms or 0.0) for each in requests if each.queue_ms is not None]
        observe(self._stages[BATCH_WAIT], [batch_ms / 1000 for _, batch_ms in waits])
        observe(self._stages[QUEUE], [max(queue_ms - batch_ms, 0.0) / 1000 for queue_ms, batch_ms in waits])
        whole = [took_s if each.queue_ms is None else took_s + each.queue_ms / 1000 for each in requests]
        last = observe(self._stages[TOTAL], whole)
        bounds, now_s = self._stages[TOTAL]._upper_bounds, time.time()
        for bucket, place in last.items():
            self._exemplars.keep(self._role, bounds[bucket], requests[place], whole[place], now_s)

    def _count_answers(self, exchanges: Sequence[Exchange]) -> None:
        families, tally = self._families, Tally()
        tally.add(exchanges, families.task, families.classify)
        for kind, count in tally.errors.items():
            families.errors.labels(*self._labels, kind).inc(count)
        for name, count in tally.classes.items():
            families.predictions.labels(*self._labels, name).inc(count)
        for name, count in tally.marks.items():
            if count:
                self._marks[name].inc(count)
        if self._confidence is not None:
            observe(self._confidence, tally.confidences)
        if tally.fallbacks:
            self._fallbacks.inc(tally.fallbacks)


def role_of(headers: Mapping[str, str]) -> str:
    """Why a request is here. Only the gateway says it, which takes the header from clients."""
    role = headers.get(ROLE_HEADER)
    if SAMPLE_HEADER in headers:
        return SAMPLE
    if role is None:
        return DIRECT
    return role if role in ROLES else OTHER


def observe_alike(histogram: Any, value: float, count: int) -> None:
    """One value, so many times."""
    histogram._sum.inc(value * count)
    histogram._buckets[bisect_left(histogram._upper_bounds, value)].inc(count)


def observe(histogram: Any, values: Sequence[float]) -> dict[int, int]:
    """Many values at once: a bucket is written once, whatever came into it. `histogram.observe` for each would take ten
    times as long for a batch of 32. The result: each bucket's last value, by their places.
    """
    if not values:
        return {}
    bounds = histogram._upper_bounds
    buckets = [bisect_left(bounds, value) for value in values]
    histogram._sum.inc(sum(values))
    for bucket, count in Counter(buckets).items():
        histogram._buckets[bucket].inc(count)
    return {bucket: place for place, bucket in enumerate(buckets)}


def is_count(name: str) -> bool:
    return name.endswith("_total")
