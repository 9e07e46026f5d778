"""What was seen of one version over the last looks, and what that comes to for a decision."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from marctl.capacity.decide import Load
from marctl.capacity.samples import Counts, Span, between
from marctl.stack.autoscaler import FIRST_START_S

COSTS_S = 20.0
"""Over so long a time the cost of a request is measured; its rate and queue time are those of the last look alone."""
STARTS = 5.0
"""A worker goes only where nothing has asked for it for so many times what its start takes."""


@dataclass
class Watch:
    """One version. `samples` begin anew with each change of its workers: what came before was of other ones."""

    samples: deque[tuple[float, Counts]] = field(default_factory=deque)
    demands: deque[tuple[float, float]] = field(default_factory=deque)
    """When, and the workers that were in demand."""
    since_s: float | None = None
    """From when on demands are complete."""
    start_s: float | None = None

    def see(self, time_s: float, counts: Counts) -> None:
        """A stack that was started anew begins anew here, too."""
        if self.samples and between(self.samples[-1][1], counts, 1.0) is None:
            self.forget()
        self.samples.append((time_s, counts))
        while len(self.samples) > 2 and self.samples[1][0] <= time_s - COSTS_S:
            self.samples.popleft()

    def forget(self) -> None:
        """All of it but what a start takes."""
        self.samples.clear()
        self.demands.clear()
        self.since_s = None

    def begin_anew(self) -> None:
        """After a change of the workers; demands do not depend on their number."""
        self.samples.clear()

    def demanded(self, time_s: float, workers: float) -> None:
        self.since_s = time_s if self.since_s is None else self.since_s
        self.demands.append((time_s, workers))

    def peak(self, time_s: float, hold_s: float) -> float | None:
        """The most that were in demand for so long; None as long as less was seen."""
        hold_s = max(hold_s, STARTS * (self.start_s or FIRST_START_S))
        while self.demands and self.demands[0][0] < time_s - hold_s:
            self.demands.popleft()
        if self.since_s is None or time_s - self.since_s < hold_s:
            return None
        return max((workers for _, workers in self.demands), default=None)

    def load(self, wanted: int, statistic: str, hold_s: float) -> Load | None:
        """None before two samples, and where TorchServe does not tell its queue."""
        if len(self.samples) < 2:
            return None
        (first_s, first), (before_s, before), (now_s, now) = self.samples[0], self.samples[-2], self.samples[-1]
        lately, whole = between(before, now, now_s - before_s), between(first, now, now_s - first_s)
        if lately is None or whole is None or now.waiting is None or now.ready is None:
            return None
        return Load(
            wanted=wanted,
            ready=now.ready,
            arrivals=lately.arrivals,
            waiting=now.waiting,
            busy=lately.busy_s / lately.seconds / max(now.ready, 1),
            # The larger one: where requests have become dearer, the mean over a longer time has not seen it yet.
            busy_s=larger(each(whole.busy_s, whole), each(lately.busy_s, lately)),
            cpu_s=each(whole.cpu_s, whole),
            queue_s=lately.queue_s(statistic),
            peak=self.peak(now_s, hold_s),
            start_s=self.start_s or FIRST_START_S,
        )

    def cores(self) -> float:
        """Processors that its workers have used."""
        if len(self.samples) < 2:
            return 0.0
        (first_s, first), (now_s, now) = self.samples[0], self.samples[-1]
        return max(now.cpu_s - first.cpu_s, 0.0) / (now_s - first_s)

    def worker_bytes(self) -> int | None:
        """Of one worker, as far as it is known."""
        now = self.samples[-1][1] if self.samples else None
        return int(now.memory_bytes / now.ready) if now is not None and now.ready and now.memory_bytes else None


def larger(one: float | None, other: float | None) -> float | None:
    return max(one or 0.0, other or 0.0) if one is not None or other is not None else None


def each(total: float, span: Span) -> float | None:
    """For one answered request."""
    return total / span.answered if span.answered else None
