"""How far probabilities can be trusted: calibration error, Brier score and log loss of labelled rows.

All arrays have one entry a row. `confidence` is the probability of the answer that was given, or of an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["choices", "event"]
BINS = 15
RESAMPLES = 1000
LEAST = 1e-15
"""A probability of 0 given to what was true would cost infinitely much."""


@dataclass(frozen=True)
class Judged:
    """Rows with known labels. `hit`: the answer was right, or the event came; 0 or 1."""

    confidence: Floats
    hit: Floats
    squared_error: Floats
    """Brier 1950: over all choices, 0 to 2; of an event alone, 0 to 1."""
    log_loss: Floats

    @classmethod
    def of(cls, probabilities: Sequence[Sequence[float]], labels: Sequence[int], kind: Kind) -> Judged:
        """From each row's probabilities, and the place of the true one among them."""
        rows = [np.asarray(row, float) for row in probabilities]
        true = np.array([row[label] for row, label in zip(rows, labels, strict=True)])
        log_loss = -np.log(np.maximum(true, LEAST))
        if kind == "event":
            event, came = np.array([row[1] for row in rows]), np.array(labels, float)
            return cls(event, came, (event - came) ** 2, log_loss)
        hit = np.array([float(row.argmax() == label) for row, label in zip(rows, labels, strict=True)])
        whole = np.array([(row**2).sum() for row in rows])
        return cls(np.array([row.max() for row in rows]), hit, whole - 2 * true + 1, log_loss)

    def __getitem__(self, rows: Any) -> Judged:
        """Some of the rows, as NumPy picks them."""
        return Judged(self.confidence[rows], self.hit[rows], self.squared_error[rows], self.log_loss[rows])

    def __len__(self) -> int:
        return len(self.hit)


def joined(parts: Sequence[Judged]) -> Judged:
    """The rows of all."""
    names = ("confidence", "hit", "squared_error", "log_loss")
    return Judged(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Reliability:
    """What is reported of some rows."""

    rows: int
    ece: float
    """Expected calibration error: Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602."""
    interval: float
    """Half the width of its 95 % interval."""
    floor: float
    """The error that exact probabilities would show on so few rows, on average."""
    brier: float
    log_loss: float

    @classmethod
    def of(cls, judged: Judged) -> Reliability:
        return cls(
            rows=len(judged),
            ece=calibration_error(judged.confidence, judged.hit),
            interval=interval_of(judged),
            floor=floor_of(judged.confidence),
            brier=float(judged.squared_error.mean()),
            log_loss=float(judged.log_loss.mean()),
        )

    def record(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "ece": round(self.ece, 4),
            "ece_interval_95": round(self.interval, 4),
            "ece_of_exact": round(self.floor, 4),
            "brier": round(self.brier, 4),
            "log_loss": round(self.log_loss, 4),
        }


def bins_of(confidence: Floats) -> NDArray[np.intp]:
    """The bin of each row: equal widths from 0 to 1, the upper edge in the last one."""
    return np.minimum((confidence * BINS).astype(np.intp), BINS - 1)


def calibration_error(confidence: Floats, hit: Floats) -> float:
    """The mean over rows of how far their bin's mean confidence is from its share of hits."""
    gaps = np.bincount(bins_of(confidence), weights=confidence - hit, minlength=BINS)
    return float(np.abs(gaps).sum() / len(hit))


def interval_of(judged: Judged) -> float:
    """Half the width: 1.96 bootstrap standard errors. Quantiles of the resampled errors would lie too high, for each
    resampling adds an error of its own."""
    dice = np.random.default_rng(0)
    draws = (dice.integers(len(judged), size=len(judged)) for _ in range(RESAMPLES))
    return 1.96 * float(np.std([calibration_error(judged.confidence[draw], judged.hit[draw]) for draw in draws]))


def floor_of(confidence: Floats) -> float:
    """Mean error if every confidence were exact (consistency resampling, Broecker and Smith 2007)."""
    dice = np.random.default_rng(0)
    hits = dice.random((RESAMPLES // 5, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, hit.astype(float)) for hit in hits]))


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram. `spread`: half the 95 % interval of `share`, if confidences were exact."""

    rows: int
    confidence: float
    share: float
    spread: float


def diagram(judged: Judged) -> list[Bin]:
    """The bins that have rows, by confidence."""
    places, found = bins_of(judged.confidence), []
    for number in range(BINS):
        here = judged[places == number]
        if len(here):
            confidence = float(here.confidence.mean())
            spread = 1.96 * float(np.sqrt((here.confidence * (1 - here.confidence)).sum())) / len(here)
            found.append(Bin(len(here), confidence, float(here.hit.mean()), spread))
    return found
