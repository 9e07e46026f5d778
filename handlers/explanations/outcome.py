"""What a method found out about one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.02
"""Of the target's change from the baseline."""
LEAST_CHANGE = 0.5
"""A smaller change is held to the tolerance of this one: 0.01, in units of the target."""


@dataclass(frozen=True, slots=True)
class Found:
    """Scores per part of the question (a word, a feature), in units of the target; `spread` their standard errors
    where they were sampled.

    `value` and `baseline_value`: the target with all parts, and with none. `steps`: points of an integral, or orders
    of the parts. `exact`: no sampling.
    """

    scores: list[float]
    value: float
    baseline_value: float
    seconds: float
    steps: int | None = None
    spread: list[float] | None = None
    exact: bool | None = None

    @property
    def delta(self) -> float:
        """Sum of the scores minus the target's change; 0 is complete."""
        return sum(self.scores) - (self.value - self.baseline_value)

    @property
    def bound(self) -> float:
        return TOLERANCE * max(abs(self.value - self.baseline_value), LEAST_CHANGE)

    @property
    def complete(self) -> bool:
        return abs(self.delta) <= self.bound

    def figures(self, digits: int) -> dict[str, Any]:
        """What every task's explanation tells of these scores, by field; numbers rounded to so many digits."""
        return {
            "value": round(self.value, digits),
            "baseline_value": round(self.baseline_value, digits),
            "delta": round(self.delta, digits),
            "delta_bound": round(self.bound, digits),
            "complete": self.complete,
            "steps": self.steps,
            "exact": self.exact,
            "compute_ms": round(self.seconds * 1000, 3),
        }
