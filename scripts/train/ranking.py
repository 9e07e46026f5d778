"""How well a probability puts rows of one label above rows of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from marctl.train.reliability import Floats

RESAMPLES = 1000


def area_under_roc(probability: Floats, hit: Floats) -> float:
    """The share of pairs, one with the event and one without, that are in order; ties count half. NaN without pairs.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    _, places, counts = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    with_event = hit.sum()
    pairs = with_event * (len(hit) - with_event)
    return float((ranks[hit == 1].sum() - with_event * (with_event + 1) / 2) / pairs) if pairs else float("nan")


def mean_area(probability: Floats, hit: Floats, folds: Sequence[NDArray[np.intp]]) -> float:
    """The mean over folds, each of which another model has scored: scores of two models have no common order."""
    return float(np.mean([area_under_roc(probability[fold], hit[fold]) for fold in folds]))


def area_interval(probability: Floats, hit: Floats, folds: Sequence[NDArray[np.intp]]) -> float:
    """Half the width of the 95 % interval of `mean_area`: 1.96 bootstrap standard errors, rows drawn within folds."""
    return 1.96 * float(np.nanstd([mean_area(probability, hit, draw) for draw in draws(folds)]))


def difference_interval(first: Floats, second: Floats, hit: Floats, folds: Sequence[NDArray[np.intp]]) -> float:
    """The same of how much `first` is better, by the same rows."""
    found = [mean_area(first, hit, draw) - mean_area(second, hit, draw) for draw in draws(folds)]
    return 1.96 * float(np.nanstd(found))


def draws(folds: Sequence[NDArray[np.intp]]) -> list[list[NDArray[np.intp]]]:
    dice = np.random.default_rng(0)
    return [[dice.choice(fold, len(fold)) for fold in folds] for _ in range(RESAMPLES)]
