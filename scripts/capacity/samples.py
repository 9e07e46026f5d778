"""What the stack's metrics page says of each version at a moment, and what changed between two moments."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import requests
from prometheus_client.parser import text_string_to_metric_families

from marctl.core.http import local_session

Key = tuple[str, str]
"""Model and version."""
TIMEOUT_S = 5.0
ANSWERED, BUSY, CPU = "handler_requests_total", "handler_seconds_total", "handler_process_cpu_seconds_total"
ATTEMPTS, QUEUE_TIME = "gateway_attempts_total", "handler_stage_seconds"
WAITING, READY = "batcher_queue_size", "marctl_workers_ready"
MEMORY = "handler_process_resident_memory_bytes"
GPU = "marctl_gpu_utilization_ratio"
WANTED = (ANSWERED, BUSY, CPU, ATTEMPTS, QUEUE_TIME, WAITING, READY, MEMORY, GPU)
"""The others, most of the page, are not taken apart."""
NOT_TAKEN = ("503", "refused")
"""Codes of attempts that found the queue full, or no worker: they arrived, and no worker counted them."""


@dataclass
class Counts:
    """Of one version. Counters are since the stack's start; `waiting` and `ready` are None where TorchServe is away."""

    answered: float = 0.0
    not_taken: float = 0.0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: float = 0.0
    waiting: int | None = None
    ready: int | None = None
    queue: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    """Upper bound in seconds to how many waited at most so long."""
    queue_sum_s: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One page, at `time_s` of the monotonic clock."""

    time_s: float
    versions: Mapping[Key, Counts]
    gpu: float | None = None


@dataclass(frozen=True)
class Span:
    """What changed from one sample to a later one."""

    seconds: float
    answered: float
    not_taken: float
    grown: int
    """By how much more requests wait at its end."""
    busy_s: float
    cpu_s: float
    queue: Mapping[float, float]
    queue_sum_s: float

    @property
    def arrivals(self) -> float:
        """Requests a second: answered ones, refused ones, and those by which the queue has grown."""
        return max(self.answered + self.not_taken + self.grown, 0.0) / self.seconds

    def queue_s(self, statistic: str) -> float | None:
        """The statistic of the queue time in seconds, None where no request's is known."""
        count = self.queue.get(math.inf, 0.0)
        if count <= 0:
            return None
        if statistic == "mean":
            return self.queue_sum_s / count
        return quantile(float(statistic.removeprefix("p")) / 100, self.queue)


def between(before: Counts, after: Counts, seconds: float) -> Span | None:
    """None if a counter has fallen: the stack was started anew in between."""
    bounds = {bound: after.queue[bound] - before.queue.get(bound, 0.0) for bound in after.queue}
    span = Span(
        seconds=seconds,
        answered=after.answered - before.answered,
        not_taken=after.not_taken - before.not_taken,
        grown=(after.waiting or 0) - (before.waiting or 0),
        busy_s=after.busy_s - before.busy_s,
        cpu_s=after.cpu_s - before.cpu_s,
        queue=bounds,
        queue_sum_s=after.queue_sum_s - before.queue_sum_s,
    )
    fallen = min(span.answered, span.not_taken, span.busy_s, span.cpu_s, *bounds.values(), 0.0) < 0
    return None if fallen or seconds <= 0 else span


def quantile(share: float, below: Mapping[float, float]) -> float:
    """Of a histogram's cumulative counts, linear within a bucket, as Prometheus's histogram_quantile; beyond the last
    finite bound it is that bound."""
    bounds = sorted(below)
    rank, lower, under = share * below[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if below[bound] >= rank and below[bound] > under:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - under) / (below[bound] - under)
        lower, under = (bound, below[bound]) if not math.isinf(bound) else (lower, under)
    return lower


def look(metrics: str, time_s: float) -> Sample | None:
    """The page of a stack at this address; None where it cannot be had."""
    try:
        with local_session() as session:
            page = session.get(f"{metrics}/metrics", timeout=TIMEOUT_S)
        return read(page.text, time_s) if page.ok else None
    except (requests.RequestException, ValueError):
        return None


def read(text: str, time_s: float) -> Sample:
    """Raises ValueError for what is no page of metrics."""
    versions: dict[Key, Counts] = defaultdict(Counts)
    gpus: list[float] = []
    lines = [line for line in text.splitlines() if line.startswith(WANTED)]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for name, labels, value, *_ in family.samples:
            if name == GPU:
                gpus.append(value)
            elif "model" in labels and "version" in labels:
                take(versions[labels["model"], labels["version"]], name, labels, value)
    return Sample(time_s, dict(versions), max(gpus, default=None))


def take(counts: Counts, name: str, labels: Mapping[str, str], value: float) -> None:
    """One line of the page."""
    if name == ANSWERED:
        counts.answered += value
    elif name == BUSY:
        counts.busy_s += value
    elif name == CPU:
        counts.cpu_s += value
    elif name == MEMORY:
        counts.memory_bytes += value
    elif name == WAITING:
        counts.waiting = int(value)
    elif name == READY:
        counts.ready = int(value)
    elif name == ATTEMPTS:
        counts.not_taken += value if labels.get("code") in NOT_TAKEN else 0.0
    elif labels.get("stage") == "queue" and labels.get("role") != "sample":
        if name == f"{QUEUE_TIME}_bucket":
            counts.queue[float(labels["le"])] += value
        elif name == f"{QUEUE_TIME}_sum":
            counts.queue_sum_s += value
