"""What a worker of many versions counts: requests by the version that they are for, everything else by worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from marctl_handlers.core.messages import Reply, Request
from marctl_handlers.shared.host import Host
from marctl_handlers.torchserve.metrics import BatchMetrics

FILE_BYTES = 4 << 20
"""Of each file: every version has counts of its own."""


class HostMetrics(BatchMetrics):
    """One shared worker's figures.

    Figures by role, as a worker of one version has them, are left out: each role has some hundred values, which
    hundreds of versions would multiply.
    """

    def __init__(self, model: str, version: str, host: Host) -> None:
        """`model`: the name that the worker itself is registered under."""
        self._host = host
        super().__init__(model, version, host)

    def watch(self, answer: Callable[[Sequence[Request]], list[Reply]], requests: Sequence[Request]) -> list[Reply]:
        computed = self._host.model_seconds
        replies = super().watch(answer, requests)
        if self._host.model_seconds > computed:
            self._inference.observe(self._host.model_seconds - computed)
        return replies

    def _count_statuses(self, requests: Sequence[Request], replies: Sequence[Reply]) -> None:
        names = [self._host.name_of(request) or self._labels for request in requests]
        statuses = [str(reply.code) for reply in replies]
        for (name, status), count in Counter(zip(names, statuses, strict=True)).items():
            self._requests.labels(*name, status).inc(count)
