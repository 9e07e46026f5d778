"""What Envoy counts of each version, by the role in which it was asked; the one place that reads Envoy's figures.

Every attempt at a version counts by itself, whatever became of the request afterwards: a version that failed, and
whose fallback answered, has failed. Envoy counts attempts in its access log's stead: exactly, at once, and only under
names that the gateway gives, none that a client could choose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from marctl.gateway.names import COUNTED, COUNTED_HEADER, MODEL_HEADER, Json, Role, extension
from marctl_handlers.core.messages import LOADING_HEADER

STATS = "/stats/prometheus?usedonly&filter=%5E(version%5C.%7Chttp%5C.gateway%5C.downstream_rq)"
"""Path of Envoy's admin page that `read` and `listener_totals` take: what they read, and little else."""
SCOPE = "version"
ATTEMPTS, TIMES, SENDING = (f"envoy_{SCOPE}_{name}" for name in ("attempts", "time_ms", "sending_us"))
REQUESTS, LISTENER = "envoy_http_downstream_rq", "envoy_http_conn_manager_prefix"
OWN_LISTENERS = "envoy://"
"""Begins the address of the fallback listener; what goes there is no attempt at the version."""
ROLES = {role.value for role in Role}
FINE_MS = [1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750]
COARSE_MS = [1000, 1500, 2000, 3000, 5000, 7500, 10_000, 15_000, 20_000, 30_000, 60_000, 300_000]
"""Buckets of the latencies."""
SENDING_MS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
"""Buckets of the gateway's own time, which are told to Envoy in microseconds."""
WHO = {
    "model": f"%REQ({MODEL_HEADER})%",
    "version": f"%REQ({COUNTED_HEADER})%",
    "role": f"%METADATA(ROUTE:{COUNTED}:role)%",
    "host": "%UPSTREAM_HOST%",
}
WHAT = {"code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "cold": f"%RESP({LOADING_HEADER})%"}
"""`cold` is 1 where a shared worker was still loading the version: no failure of it, and the request asks again."""


class Failure(StrEnum):
    """Why an attempt failed."""

    ERROR = "5xx"
    TIMEOUT = "timeout"
    RESET = "reset"
    """The connection broke before an answer came."""
    REFUSED = "refused"
    """No worker, no connection, or more under way than the gateway lets through: the version never had it."""


FLAGS = {
    "UT": Failure.TIMEOUT,
    "SI": Failure.TIMEOUT,
    "UH": Failure.REFUSED,
    "UO": Failure.REFUSED,
    "UF": Failure.REFUSED,
    "UC": Failure.RESET,
    "UR": Failure.RESET,
    "UPE": Failure.RESET,
    "LR": Failure.RESET,
}
"""Envoy's response flags; where several stand, the first one here that is among them says it."""


@dataclass
class Latencies:
    """Of answers that were no failure; Envoy adds to them every 5 s."""

    below: Counter[float] = field(default_factory=Counter)
    """Bucket's upper bound in ms, the last one infinite, to how many took at most so long."""
    sum_ms: float = 0.0

    @property
    def count(self) -> int:
        return self.below[math.inf]

    def take(self, part: str, labels: Mapping[str, str], value: float, in_ms: float = 1.0) -> None:
        """One series of a histogram. `in_ms`: its unit."""
        if part == "_bucket":
            self.below[float(labels["le"]) * in_ms] += int(value)
        elif part == "_sum":
            self.sum_ms += value * in_ms

    def quantile_ms(self, share: float) -> float:
        """On a straight line within its bucket; NaN of nothing, the last finite bound for what lies beyond it."""
        rank = share * self.count
        for (lower, before), (bound, total) in pairwise([(0.0, 0), *sorted(self.below.items())]):
            if total >= rank and total > before:
                return lower if math.isinf(bound) else lower + (bound - lower) * (rank - before) / (total - before)
        return math.nan


@dataclass
class Attempts:
    """Running totals of one model, version and role since Envoy's start."""

    codes: Counter[int] = field(default_factory=Counter)
    """Status code to the number of attempts that were answered with it."""
    failures: Counter[Failure] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    """From the request's sending to the answer's end."""
    sending: Latencies = field(default_factory=Latencies)
    """From the gateway's first look at the request until it was sent: its body's arrival, filters, connection."""

    @property
    def total(self) -> int:
        """All attempts. One whose client went away before the answer is neither here nor a failure."""
        unanswered = sum(n for failure, n in self.failures.items() if failure is not Failure.ERROR)
        return self.codes.total() + unanswered

    @property
    def failed(self) -> int:
        return self.failures.total()


Key = tuple[str, str, Role]
"""Model, version, role."""


def read(page: str) -> dict[Key, Attempts]:
    """Every version's attempts on Envoy's Prometheus page; those that were never asked are left out."""
    found: dict[Key, Attempts] = {}
    for name, labels, value in samples(page):
        if not name.startswith((ATTEMPTS, TIMES, SENDING)) or labels["host"].startswith(OWN_LISTENERS):
            continue
        if labels.get("cold") == "1":
            continue
        if labels["role"] not in ROLES:  # Envoy's own pages
            continue
        attempts = found.setdefault((labels["model"], labels["version"], Role(labels["role"])), Attempts())
        if name.startswith(ATTEMPTS):
            add(attempts, int(labels["code"]), labels["flags"].split(","), int(value))
        elif name.startswith(TIMES):
            attempts.latencies.take(name.removeprefix(TIMES), labels, value)
        else:
            attempts.sending.take(name.removeprefix(SENDING), labels, value, in_ms=0.001)
    return found


def add(attempts: Attempts, code: int, flags: Sequence[str], number: int) -> None:
    """Count one series in."""
    failure = next((kind for flag, kind in FLAGS.items() if flag in flags), None)
    if failure is not None:
        attempts.failures[failure] += number
    elif code:
        attempts.codes[code] += number
        if code >= 500:
            attempts.failures[Failure.ERROR] += number


def listener_totals(page: str, listener: str) -> tuple[float, float, float]:
    """Requests that one of Envoy's listeners received, those whose times are in, and the sum of these times in ms."""
    found = {name: value for name, labels, value in samples(page) if labels.get(LISTENER) == listener}
    received, times = f"{REQUESTS}_total", f"{REQUESTS}_time"
    return found.get(received, 0.0), found.get(f"{times}_count", 0.0), found.get(f"{times}_sum", 0.0)


def samples(page: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of each series of a Prometheus page."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def attempt_logs() -> list[Json]:
    """Loggers of a router: one counts each attempt, another takes the times of those that were no failure."""
    answered = {"and_filter": {"filters": [status("GE", 200), status("LE", 499)]}}
    time = {"stat": stat("time_ms", WHO), "unit": "Milliseconds", "value_format": "%DURATION%"}
    until_sent = "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%"
    sending = {"stat": stat("sending_us", WHO), "unit": "Microseconds", "value_format": until_sent}
    return [stats(counters=[attempts()]), stats(histograms=[time, sending]) | {"filter": answered}]


def refusal_log() -> Json:
    """Logger of a listener: requests that found no worker, so that no attempt was made."""
    return stats(counters=[attempts()]) | {"filter": {"response_flag_filter": {"flags": ["UH"]}}}


def attempts() -> Json:
    return {"stat": stat("attempts", WHO | WHAT), "value_fixed": 1}


def stat(name: str, tags: Mapping[str, str]) -> Json:
    return {"name": name, "tags": [{"name": tag, "value_format": value} for tag, value in tags.items()]}


def stats(**kinds: Iterable[Json]) -> Json:
    kind = "envoy.extensions.access_loggers.stats.v3.Config"
    return extension("envoy.access_loggers.stats", kind, stats_scope={"prefix": SCOPE}, **kinds)


def status(op: str, code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"counts.{op}.{code}"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def histogram_settings() -> Json:
    """Envoy's buckets for the latencies."""
    buckets = {"time_ms": [*FINE_MS, *COARSE_MS], "sending_us": [bound * 1000 for bound in SENDING_MS]}
    return {
        "histogram_bucket_settings": [
            {"match": {"prefix": f"{SCOPE}.{name}"}, "buckets": bounds} for name, bounds in buckets.items()
        ]
    }
