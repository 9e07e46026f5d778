"""Calibration: maps from a model's scores to probabilities that come true as often as they say.

`marctl calibrate` learns a map from labelled rows. It stands in the recipe and in the archive's settings, and a task
applies it where its scores become probabilities. Every map rises with the score: it changes how sure an answer is,
never which answer has the highest score or which of two rows comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Positive = Annotated[float, Meta(gt=0, le=1000)]
Share = Annotated[float, Meta(ge=0, le=1)]
LEAST = 1e-12
"""Probabilities nearer to 0 or 1 count as this far from it where their log-odds are taken."""


class Temperature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="temperature"):
    """Divides the scores of a question's choices before the softmax; above 1 it makes them less sure.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """

    temperature: Positive = 1.0
    by_choices: dict[Annotated[int, Meta(ge=2)], Positive] = {}
    """By the number of choices, where it is known better; other numbers take `temperature`."""

    def of(self, n_choices: int) -> float:
        return self.by_choices.get(n_choices, self.temperature)


class Platt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="platt"):
    """A straight line through an event's log-odds. Source: Platt 1999, "Probabilistic Outputs for SVMs"."""

    slope: Positive
    intercept: Annotated[float, Meta(ge=-1000, le=1000)]

    def __call__(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probabilities of the event, (rows,), from uncalibrated ones."""
        import numpy as np

        p = np.clip(probabilities, LEAST, 1 - LEAST)
        log_odds = self.slope * (np.log(p) - np.log1p(-p)) + self.intercept
        calibrated: NDArray[np.float64] = np.exp(-np.logaddexp(0, -log_odds))
        return calibrated


class Isotonic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="isotonic"):
    """Straight lines between points of an event's uncalibrated and calibrated probability, level beyond the ends.

    Source: Oron and Flournoy 2017, doi:10.1080/19466315.2017.1286256 (centred isotonic regression, which has no steps).
    """

    uncalibrated: Annotated[list[Share], Meta(min_length=2)]
    calibrated: Annotated[list[Share], Meta(min_length=2)]

    def __post_init__(self) -> None:
        if len(self.uncalibrated) != len(self.calibrated):
            raise ValueError(
                f"{len(self.uncalibrated)} uncalibrated points, but {len(self.calibrated)} calibrated ones"
            )
        for name in ("uncalibrated", "calibrated"):
            if any(low >= high for low, high in pairwise(getattr(self, name))):
                raise ValueError(f"{name}: expected each point above the one before")

    def __call__(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probabilities of the event, (rows,), from uncalibrated ones."""
        import numpy as np

        calibrated: NDArray[np.float64] = np.interp(probabilities, self.uncalibrated, self.calibrated)
        return calibrated


Calibration = Temperature | Platt | Isotonic
METHODS: dict[str, tuple[type[Calibration], ...]] = {"choices": (Temperature,), "event": (Platt, Isotonic)}
"""By what a task gives probabilities of."""


def softmax(scores: Sequence[float], calibration: Temperature | None = None) -> list[float]:
    """Probabilities of one question's choices from their scores, which must be finite.

    The first of the highest scores always has the highest probability, whatever the temperature.
    """
    temperature = 1.0 if calibration is None else calibration.of(len(scores))
    peak = max(scores)
    weights = [math.exp((score - peak) / temperature) for score in scores]
    total = sum(weights)
    shares = [weight / total for weight in weights]
    best = scores.index(peak)
    if shares.index(1.0 / total) != best:  # scores that differ in their last digits were rounded to one share
        shares[best] = math.nextafter(shares[best], 2.0)
    return shares
