from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest

from marctl.gateway.counts import Attempts, Failure, Latencies
from marctl.gateway.names import Role
from marctl.stack.metrics.gateway import expiry, families


class Given:
    def __init__(self, *metrics: object) -> None:
        self.metrics = metrics

    def collect(self) -> object:
        return self.metrics


def lines(*metrics: object) -> list[str]:
    registry = CollectorRegistry()
    registry.register(Given(*metrics))  # type: ignore[arg-type]  # `collect` is all it asks for
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_every_attempt_is_counted_once_and_failures_begin_at_zero() -> None:
    attempts = Attempts(Counter({200: 5, 503: 2}), Counter({Failure.ERROR: 2, Failure.TIMEOUT: 3}))
    found = lines(*families({("quiz", "1.0", Role.SPLIT): attempts}))
    who = 'model="quiz",role="split",version="1.0"'
    counted = {f'code="{code}"': number for code, number in (("200", 5), ("503", 2), ("timeout", 3))}
    assert [line for line in found if line.startswith("gateway_attempts")] == [
        f"gateway_attempts_total{{{code},{who}}} {number}.0" for code, number in counted.items()
    ]
    failed = {"5xx": 2, "timeout": 3, "reset": 0, "refused": 0}
    assert [line for line in found if line.startswith("gateway_failures")] == [
        f'gateway_failures_total{{kind="{kind}",{who}}} {number}.0' for kind, number in failed.items()
    ]
    assert sum(counted.values()) == attempts.total


def test_times_are_told_in_seconds() -> None:
    times = Latencies(Counter({0.1: 1, 1000.0: 2, math.inf: 4}), sum_ms=3500)
    found = lines(*families({("quiz", "1.0", Role.SPLIT): Attempts(sending=times)}))
    buckets = [line for line in found if line.startswith("gateway_sending_seconds")]
    who = 'model="quiz",role="split",version="1.0"'
    assert buckets == [
        f'gateway_sending_seconds_bucket{{le="0.0001",{who}}} 1.0',
        f'gateway_sending_seconds_bucket{{le="1.0",{who}}} 2.0',
        f'gateway_sending_seconds_bucket{{le="+Inf",{who}}} 4.0',
        f"gateway_sending_seconds_count{{{who}}} 4.0",
        f"gateway_sending_seconds_sum{{{who}}} 3.5",
    ]


def test_the_first_certificate_to_end_is_told() -> None:
    chains = [{"cert_chain": [{"expiration_time": f"2027-0{month}-01T00:00:00Z"}]} for month in (3, 2)]
    [line] = lines(expiry({"certificates": chains}))
    assert (
        float(line.removeprefix("gateway_certificate_expiry_timestamp_seconds "))
        == datetime(2027, 2, 1, tzinfo=UTC).timestamp()
    )
    assert lines(expiry({"certificates": []})) == []
