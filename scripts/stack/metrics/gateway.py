"""What Envoy counts of each version and role, in Prometheus's own units and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime

import requests
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from marctl.core.http import local_session
from marctl.gateway.counts import STATS, Attempts, Failure, Key, Latencies, listener_totals, read
from marctl.gateway.names import GATEWAY

LABELS = ("model", "version", "role")
ATTEMPTS = "Attempts at a version, by the answer's status or by why there was none."
FAILURES = "Those of them that failed: an answer of 500 and above, or none."
SENDING = "From the gateway's first look at a request until it was sent to the version."
TIMES = "From a request's sending to its answer's end; of attempts that were no failure."


class GatewayFigures:
    """Of the gateway whose admin page this is; nothing while it does not answer."""

    def __init__(self, admin: Callable[[], str], timeout_s: float) -> None:
        self._admin, self._timeout_s = admin, timeout_s

    def collect(self) -> Iterator[Metric]:
        with suppress(requests.RequestException, ValueError), local_session() as session:
            admin = self._admin()
            page = session.get(admin + STATS, timeout=self._timeout_s).text
            certificates = session.get(f"{admin}/certs", timeout=self._timeout_s).json()
            received = listener_totals(page, GATEWAY)[0]
            yield CounterMetricFamily("gateway_requests", "Requests that the gateway received.", received)
            yield from families(read(page))
            yield expiry(certificates)


def families(counted: dict[Key, Attempts]) -> Iterator[Metric]:
    attempts = CounterMetricFamily("gateway_attempts", ATTEMPTS, labels=(*LABELS, "code"))
    failures = CounterMetricFamily("gateway_failures", FAILURES, labels=(*LABELS, "kind"))
    sending = HistogramMetricFamily("gateway_sending_seconds", SENDING, labels=LABELS)
    times = HistogramMetricFamily("gateway_attempt_seconds", TIMES, labels=LABELS)
    for (model, version, role), found in counted.items():
        who = (model, version, role.value)
        for code, number in found.codes.items():
            attempts.add_metric((*who, str(code)), number)
        for kind in Failure:  # also those that never were: a rate needs a zero to begin with
            number = found.failures[kind]
            failures.add_metric((*who, kind.value), number)
            if number and kind is not Failure.ERROR:
                attempts.add_metric((*who, kind.value), number)
        for family, latencies in ((sending, found.sending), (times, found.latencies)):
            if latencies.count:
                family.add_metric(who, *in_seconds(latencies))
    yield from (attempts, failures, sending, times)


def in_seconds(latencies: Latencies) -> tuple[list[tuple[str, float]], float]:
    """Upper bounds and how many took at most so long; and the sum."""
    bounds = sorted(latencies.below.items())
    return [(bucket(bound), float(count)) for bound, count in bounds], latencies.sum_ms / 1000


def bucket(bound_ms: float) -> str:
    return "+Inf" if math.isinf(bound_ms) else str(floatToGoString(round(bound_ms / 1000, 6)))


def expiry(certificates: dict[str, list[dict[str, list[dict[str, str]]]]]) -> Metric:
    """When the first of the certificates in force ends; no value where the gateway has none."""
    text = "When the gateway's certificate ends, in seconds since 1970."
    family = GaugeMetricFamily("gateway_certificate_expiry_timestamp_seconds", text)
    chains = [link for each in certificates["certificates"] for link in each.get("cert_chain", [])]
    ends = [datetime.fromisoformat(link["expiration_time"]).timestamp() for link in chains]
    if ends:
        family.add_metric((), min(ends))
    return family
