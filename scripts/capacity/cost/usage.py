"""Who used how much: requests and processor time by model and version, from Prometheus, the metrics page or the log.

Counters of a stack begin with its start; Prometheus keeps them over starts and sums them over nodes. Processor time is
that of the workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import requests

from marctl.capacity.samples import ANSWERED, CPU, Key, look
from marctl.core.errors import UserError
from marctl.core.http import local_session
from marctl.records.reader import batches
from marctl.records.streams import answering, connect
from marctl.stack.state import State
from marctl.stack.up import redis_url

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Usage:
    """Of one version over some time. `cpu_s`: None where only the requests are known."""

    model: str
    version: str
    requests: float
    cpu_s: float | None

    def cost(self, core_hour: float) -> float | None:
        """Of the processor time, in the currency of the price."""
        return None if self.cpu_s is None else self.cpu_s / 3600 * core_hour


def from_page(metrics: str) -> list[Usage]:
    """Since the stack's start. Raises UserError where the page cannot be had."""
    sample = look(metrics, 0.0)
    if sample is None:
        raise UserError(f"{metrics}/metrics does not answer; is the stack up? See `marctl status`")
    return ordered(
        Usage(*key, counts.answered, counts.cpu_s) for key, counts in sample.versions.items() if counts.answered
    )


def from_prometheus(url: str, since: datetime) -> list[Usage]:
    """From then until now. Raises UserError."""
    seconds = max(round((datetime.now(UTC) - since).total_seconds()), 1)
    answered, cpu = (increase(url, name, seconds) for name in (ANSWERED, CPU))
    return ordered(Usage(*key, count, cpu.get(key)) for key, count in answered.items() if count)


def increase(url: str, counter: str, seconds: int) -> dict[Key, float]:
    """By how much a counter grew, by model and version."""
    query = f"sum by (model, version) (increase({counter}[{seconds}s]))"
    try:
        with local_session() as session:
            answer = session.get(f"{url.rstrip('/')}/api/v1/query", params={"query": query}, timeout=TIMEOUT_S)
        rows = answer.json()["data"]["result"]
        return {(row["metric"]["model"], row["metric"]["version"]): float(row["value"][1]) for row in rows}
    except (requests.RequestException, ValueError, KeyError, TypeError) as err:
        raise UserError(f"{url} does not answer as a Prometheus does ({type(err).__name__}: {err})") from err


def from_log(state: State, since: datetime) -> list[Usage]:
    """Of requests that the prediction log holds, drained or not; a failed one is a request, too. Raises UserError."""
    client = connect(state) if redis_url(state) else None
    counts: Counter[Key] = Counter()
    with answering():
        _, found = batches(state.prediction_log, since=since, columns=["model", "version"], client=client)
        for batch in found:
            counts.update(zip(batch.column("model").to_pylist(), batch.column("version").to_pylist(), strict=True))
    return ordered(Usage(*key, float(count), None) for key, count in counts.items())


def ordered(found: Iterable[Usage]) -> list[Usage]:
    """Whoever used most comes first."""
    return sorted(found, key=lambda each: (-(each.cpu_s or 0.0), -each.requests, each.model, each.version))
