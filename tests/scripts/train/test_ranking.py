"""Areas under the ROC curve, against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from marctl.train.ranking import area_interval, area_under_roc, difference_interval, mean_area


@pytest.mark.parametrize("decimals", [1, 6])
def test_an_area_is_scikit_learns_also_with_ties(decimals: int) -> None:
    dice = np.random.default_rng(1)
    hit = (dice.random(500) < 0.3).astype(float)
    probability = (hit * 0.2 + dice.random(500) * 0.8).round(decimals)
    assert area_under_roc(probability, hit) == pytest.approx(roc_auc_score(hit, probability), abs=1e-12)


def test_without_both_labels_there_is_no_area() -> None:
    assert math.isnan(area_under_roc(np.array([0.1, 0.2]), np.array([1.0, 1.0])))


def test_each_fold_is_ranked_by_itself() -> None:
    hit = np.array([0.0, 1.0, 0.0, 1.0])
    probability = np.array([0.1, 0.2, 0.8, 0.9])
    assert mean_area(probability, hit, [np.array([0, 1]), np.array([2, 3])]) == 1
    assert mean_area(probability, hit, [np.arange(4)]) == 0.75


def test_the_interval_is_that_of_hanley_and_mcneil() -> None:
    dice = np.random.default_rng(2)
    hit = (dice.random(1000) < 0.3).astype(float)
    probability = hit * 0.3 + dice.random(1000) * 0.7
    area, n1 = area_under_roc(probability, hit), hit.sum()
    n0 = len(hit) - n1
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt((area * (1 - area) + (n1 - 1) * (q1 - area**2) + (n0 - 1) * (q2 - area**2)) / (n1 * n0))
    whole = [np.arange(1000)]
    assert area_interval(probability, hit, whole) == pytest.approx(1.96 * error, rel=0.25)
    assert difference_interval(probability, probability, hit, whole) == 0
