"""What TorchServe tells of each version: workers, and requests that wait for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client.core import GaugeMetricFamily, Metric

from marctl.core.errors import UserError
from marctl.stack.management import Management, Served

LABELS = ("model", "version")


class Queues:
    """All four families are there when TorchServe does not answer, without a value."""

    def __init__(self, management: str, timeout_s: float) -> None:
        self._management = Management(management, timeout_s=timeout_s)

    def collect(self) -> Iterator[Metric]:
        served: list[Served] = []
        with suppress(UserError):
            served += (each for model in self._management.models() for each in self._management.versions(model))
        values = {
            ("batcher_queue_size", "Requests that wait for a worker."): [each.queue for each in served],
            ("batcher_queue_limit", "Requests that may wait; more are refused."): [each.queue_size for each in served],
            ("marctl_workers_ready", "Workers that can answer."): [each.ready for each in served],
            ("marctl_workers_wanted", "Workers that there should be."): [each.asked for each in served],
        }
        for (name, text), numbers in values.items():
            family = GaugeMetricFamily(name, text, labels=LABELS)
            for each, number in zip(served, numbers, strict=True):
                family.add_metric((each.model, each.version), number)
            yield family
