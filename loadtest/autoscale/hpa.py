"""Kubernetes' HorizontalPodAutoscaler, as its documentation gives the rule, on the workers of one host.

    desired = ceil(current x metric / target)

Nothing changes where the ratio is within 10 % of 1. It looks every 15 s. Up: at most twice as many or four more, each
15 s. Down: to the largest number that was desired within the stabilisation window, 300 s by default.
Source: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ and the defaults of `behavior` there.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from marctl.capacity.autoscaler import Autoscaler
from marctl.capacity.decide import Decision, Load, Room, Target
from marctl.capacity.settings import read_settings
from marctl.stack.state import State

SYNC_S, TOLERANCE, MORE = 15.0, 0.1, 4
METRICS: dict[str, Callable[[Target, Load], float | None]] = {
    "queue": lambda target, load: None if load.queue_s is None else load.queue_s / target.queue_s,
    "busy": lambda target, load: None if load.busy_s is None else load.busy / target.utilisation,
}
"""The metric's value over its target: the queue time over its objective, or how busy the workers are over how busy they
may be, as a share of the processor stands for where a worker computes on one."""


@dataclass
class Hpa:
    """A rule for the autoscaler's loop. `window_s`: the stabilisation of a way down."""

    metric: str
    window_s: float = 300.0
    clock: Callable[[], float] = time.monotonic
    _synced: float = -math.inf
    _desired: deque[tuple[float, int]] = field(default_factory=deque)

    def __call__(self, target: Target, load: Load, room: Room) -> Decision:
        now = self.clock()
        ratio = METRICS[self.metric](target, load)
        if now - self._synced < SYNC_S or ratio is None:
            return Decision(load.wanted, 0.0, "steady", "between two looks" if ratio is not None else "no metric")
        self._synced = now
        desired = load.wanted if abs(ratio - 1) <= TOLERANCE else math.ceil(load.wanted * ratio)
        desired = min(max(desired, target.least), target.most)
        self._desired.append((now, desired))
        while self._desired[0][0] < now - self.window_s:
            self._desired.popleft()
        if desired > load.wanted:
            desired = min(desired, max(2 * load.wanted, load.wanted + MORE))
        else:
            desired = min(max(each for _, each in self._desired), load.wanted)
        return Decision(desired, float(desired), "load", f"{self.metric} is {ratio:.2f} times its target")


def main(folder: str, settings: str, metric: str, window_s: str) -> None:
    """Scale a stack by this rule until the process is ended."""
    rule = Hpa(metric, float(window_s))
    Autoscaler(State(Path(folder)), read_settings(Path(settings)), lambda _: None, rule=rule).run(Event())


if __name__ == "__main__":
    main(*sys.argv[1:])
