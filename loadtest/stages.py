"""What the servers count of themselves, read from their metrics pages."""

from __future__ import annotations

import time
from dataclasses import dataclass

import requests

from loadtest.stack import Stack
from marctl.gateway.counts import STATS, listener_totals, read, samples
from marctl.gateway.names import GATEWAY

TIMEOUT_S = 10.0
LONGEST_MERGE_S = 20.0
"""Envoy adds what its threads measured to its histograms every 5 s (stats_flush_interval), later on a busy machine."""
LOOK_EVERY_S = 0.2
MICROSECONDS, SECONDS = 1e-3, 1e3
"""In ms."""
TORCHSERVE = {
    "ts_inference_requests_total": "requests",
    "ts_inference_latency_microseconds_total": "torchserve_us",
    "ts_queue_latency_microseconds_total": "queue_us",
    "handler_batches_total": "batches",
    "handler_requests_total": "batched",
    "handler_seconds_total": "handler_s",
}
"""By the names that Prometheus' parser gives to counters, which all end in `_total`."""
Counts = dict[str, float]


def torchserve_counts(stack: Stack, model: str) -> Counts:
    """Running totals of a model's versions: requests, and microseconds or seconds spent on them."""
    return totals(get(f"{stack.status['metrics']}/metrics"), TORCHSERVE, model)


def envoy_counts(stack: Stack, model: str) -> Counts:
    """Running totals of the gateway's listener for clients and of the answers of a model's versions."""
    if not stack.status.get("gateway"):
        return {}
    page = get(stack.status["admin"] + STATS)
    received, answered, gateway_ms = listener_totals(page, GATEWAY)
    answers = [attempts.latencies for (name, _, _), attempts in read(page).items() if name == model]
    return {
        "gateway_received": received,
        "gateway_requests": answered,
        "gateway_ms": gateway_ms,
        "upstream_requests": sum(latencies.count for latencies in answers),
        "upstream_ms": sum(latencies.sum_ms for latencies in answers),
    }


def settled_envoy_counts(stack: Stack, model: str) -> Counts:
    """Like envoy_counts, but complete: every request that the gateway has received is in them. Call it when it is idle.

    A counter is exact at once, so the histograms are whole when they hold as many requests. Where others use the
    gateway, the wait ends after LONGEST_MERGE_S.
    """
    deadline = time.monotonic() + LONGEST_MERGE_S
    while True:
        counts = envoy_counts(stack, model)
        if counts.get("gateway_requests") == counts.get("gateway_received") or time.monotonic() > deadline:
            return counts
        time.sleep(LOOK_EVERY_S)


def get(url: str) -> str:
    response = requests.get(url, timeout=TIMEOUT_S)
    response.raise_for_status()
    return response.text


def totals(page: str, names: dict[str, str], model: str) -> Counts:
    """Sums over all series of a model on TorchServe's page."""
    found = dict.fromkeys(names.values(), 0.0)
    for name, labels, value in samples(page):
        if name in names and model in labels.values():
            found[names[name]] += value
    return found


def difference(after: Counts, before: Counts) -> Counts:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


@dataclass(frozen=True)
class Stage:
    """A part of the way of a mean request."""

    name: str
    ms: float


def stages(client_ms: float, counts: Counts) -> list[Stage]:
    """Where a mean request's time goes, from the client inwards; they add up to `client_ms`.

    Each part is the difference between what two neighbours on the way measure, so it includes the way between them and
    the wait for a processor. Envoy rounds down to whole ms and to the middle of histogram buckets a tenth of their
    value wide, so that a small part can come out below zero. Without the gateway's own counts its part is the client's.
    """

    def mean(total: str, number: str, unit: float = 1.0) -> float:
        return counts.get(total, 0.0) / counts[number] * unit if counts.get(number) else 0.0

    gateway = mean("gateway_ms", "gateway_requests")
    upstream = mean("upstream_ms", "upstream_requests")
    torchserve = mean("torchserve_us", "requests", MICROSECONDS)
    queue = mean("queue_us", "requests", MICROSECONDS)
    handler = mean("handler_s", "batches", SECONDS)
    outermost = gateway or upstream or torchserve
    outside = "client and its sockets" if gateway or not upstream else "client, its sockets and the gateway"
    found = [Stage(outside, client_ms - outermost)]
    if gateway:
        found.append(Stage("gateway (Envoy)", gateway - upstream))
    if upstream:
        found.append(Stage("TorchServe's HTTP", upstream - torchserve))
    found += [
        Stage("TorchServe's queue", queue),
        Stage("between TorchServe and its worker", torchserve - queue - handler),
        Stage("worker: the batch's handler", handler),
    ]
    return [Stage(stage.name, round(stage.ms, 3)) for stage in found]
