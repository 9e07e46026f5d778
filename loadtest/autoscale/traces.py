"""Load over time: when requests are due."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

Rate = Callable[[float], float]
"""Requests a second at a time in seconds."""
LOW_S, HIGH_S = 20.0, 60.0
"""Of the step: before it, and at its top; the rest is low again."""
PEAK, LUNCH, LUNCH_WIDTH = 14.5 / 24, 12.5 / 24, 0.5 / 24
"""Shares of a day: its peak, and half an hour about lunch with a quarter more."""


def step(low: float, high: float, _: float) -> Rate:
    return lambda at: high if LOW_S <= at < LOW_S + HIGH_S else low


def day(low: float, high: float, whole_s: float) -> Rate:
    """A day in `whole_s`: a cosine from night to afternoon, and a rush at lunch."""

    def rate(at: float) -> float:
        share = at / whole_s
        wave = (1 + math.cos(2 * math.pi * (share - PEAK))) / 2
        rush = 0.25 * math.exp(-(((share - LUNCH) / LUNCH_WIDTH) ** 2))
        return low + (high - low) * min(wave**2 * (1 + rush), 1.0)

    return rate


TRACES = {"step": step, "day": day}


def times(rate: Rate, most: float, whole_s: float, seed: int) -> Iterator[float]:
    """Of a Poisson process whose rate changes: drawn at `most` a second and thinned (Lewis and Shedler 1979)."""
    draw = random.Random(seed)
    at = 0.0
    while (at := at + draw.expovariate(most)) < whole_s:
        if draw.random() * most < rate(at):
            yield at
