"""How long requests wait for their batch to fill, which TorchServe tells nobody.

It takes a batch's first request as soon as a worker is free, and then waits for others (Model.java, `pollBatch`). So a
batch begins to fill when its worker has handed back the one before, or when its first request comes, whichever is
later. What TorchServe itself needs to hand batches over counts as part of this wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from marctl_handlers.core.messages import START_HEADER
from marctl_handlers.core.pipeline import number_in


@dataclass(frozen=True, slots=True)
class Wait:
    """Of one request, in milliseconds; None where the gateway's time is missing."""

    queue_ms: float | None
    """From the gateway to the worker."""
    batch_ms: float | None
    """Of it, while the batch filled."""


UNKNOWN = Wait(None, None)


class Waiting:
    """Of one worker. Times are milliseconds since 1970."""

    def __init__(self) -> None:
        self._free_ms = 0.0

    def freed(self, now_ms: float) -> None:
        """The worker has handed a batch back."""
        self._free_ms = now_ms

    def waits(self, requests: Iterable[Mapping[str, str]], now_ms: float) -> list[Wait]:
        """For each request of a batch that is here now, by its headers."""
        starts = [number_in(headers.get(START_HEADER)) for headers in requests]
        first = min((start for start in starts if start is not None), default=now_ms)
        begun = max(self._free_ms, first)
        return [
            UNKNOWN if start is None else Wait(since(start, now_ms), since(max(start, begun), now_ms))
            for start in starts
        ]


def since(start_ms: float, now_ms: float) -> float:
    """Zero where the clock was set back."""
    return round(max(now_ms - start_ms, 0.0), 3)
