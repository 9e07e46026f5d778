"""Load over time, as a share of the most: the same shapes for users (closed loop) and for rates (open loop)."""

from __future__ import annotations

import random
from collections.abc import Iterator

SHAPES = ("steady", "step", "spike")
STEPS = 5
SPIKE_BASE = 0.2
"""Before and after the spike."""


def share_at(shape: str, at_s: float, whole_s: float) -> float:
    """steady: all of it; step: a fifth, two fifths, ... each for a fifth of the time; spike: all of it in the middle
    fifth, little else. A run without an end is steady."""
    if shape == "steady" or not whole_s:
        return 1.0
    fifth = min(int(at_s / whole_s * STEPS), STEPS - 1)
    if shape == "step":
        return (fifth + 1) / STEPS
    return 1.0 if fifth == STEPS // 2 else SPIKE_BASE


def users_at(shape: str, at_s: float, whole_s: float, most: int) -> int:
    return max(round(most * share_at(shape, at_s, whole_s)), 1)


def even_times(rate: float, whole_s: float, shape: str = "steady") -> Iterator[float]:
    """When requests are due, in seconds from the start: equal gaps at each moment's rate."""
    at = 0.0
    while at < whole_s:
        yield at
        at += 1 / (rate * share_at(shape, at, whole_s))


def poisson_times(rate: float, whole_s: float, shape: str = "steady", seed: int = 0) -> Iterator[float]:
    """As many independent clients would send: exponentially distributed gaps at each moment's rate."""
    draw = random.Random(seed).expovariate
    at = draw(rate * share_at(shape, 0.0, whole_s))
    while at < whole_s:
        yield at
        at += draw(rate * share_at(shape, at, whole_s))
