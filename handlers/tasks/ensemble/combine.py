"""Members' probabilities of one question as one: plain Python, for a question has a handful of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from marctl_handlers.core.calibration import Calibration, Temperature, softmax

Probabilities = Sequence[float]
Rule = Callable[[Sequence[Probabilities], Sequence[float]], list[float]]

TIE_BREAK = 1e-6
"""Share of the mean probabilities in a vote: enough to decide a tie, and nothing else."""
LEAST = 1e-12
"""A probability of 0 would silence every other member of a stack."""


def average(members: Sequence[Probabilities], weights: Sequence[float]) -> list[float]:
    """The weighted mean (linear opinion pool; Stone 1961, doi:10.1214/aoms/1177704873)."""
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    return [sum(map(float.__mul__, shares, column)) for column in zip(*members, strict=True)]


def vote(members: Sequence[Probabilities], weights: Sequence[float]) -> list[float]:
    """Each class's share of the votes; of two with as many, the mean probabilities decide."""
    choices = [[float(i == first(row)) for i in range(len(row))] for row in members]
    mean = average(members, weights)
    return [(1 - TIE_BREAK) * votes + TIE_BREAK * p for votes, p in zip(average(choices, weights), mean, strict=True)]


def stack(members: Sequence[Probabilities], weights: Sequence[float]) -> list[float]:
    """Proportional to the product of the members' probabilities, each to the power of its weight: a logistic regression
    on log-probabilities without intercept (logarithmic opinion pool; Genest and Zidek 1986, doi:10.1214/ss/1177013825).
    """
    logs = [[weight * math.log(max(p, LEAST)) for p in row] for row, weight in zip(members, weights, strict=True)]
    scores = [math.fsum(column) for column in zip(*logs, strict=True)]
    peak = max(scores)
    powers = [math.exp(score - peak) for score in scores]
    total = math.fsum(powers)
    return [power / total for power in powers]


def calibrated(probabilities: Probabilities, calibration: Calibration | None) -> Probabilities:
    """Of the ensemble itself; the members' own have been applied."""
    if calibration is None:
        return probabilities
    if isinstance(calibration, Temperature):
        return softmax([math.log(max(p, LEAST)) for p in probabilities], calibration)
    import numpy as np

    event = float(calibration(np.array(probabilities[1:]))[0])
    return [1 - event, event]


RULES: dict[str, Rule] = {"average": average, "vote": vote, "stack": stack}


def first(row: Probabilities) -> int:
    return max(range(len(row)), key=row.__getitem__)
