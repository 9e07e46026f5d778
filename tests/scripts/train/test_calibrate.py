"""What is learned is what other implementations find, and no more than the rows can tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression

from marctl.train.calibrate import (
    Rows,
    Unlearnable,
    apply,
    folds_of,
    learn,
    learn_isotonic,
    learn_platt,
    temperature_of,
)
from marctl.train.reliability import calibration_error
from marctl_handlers.core.calibration import Isotonic, Platt, Temperature

Scores = np.ndarray[Any, np.dtype[np.float64]]


def rows_of(scores: Scores, temperature: float, seed: int = 0, name: str = "a") -> Rows:
    """A model that says softmax(scores), where softmax(scores / temperature) is true."""
    dice = np.random.default_rng(seed)
    true = scipy.special.softmax(scores / temperature, axis=1)
    labels = (dice.random((len(scores), 1)) > true.cumsum(1)).sum(1)
    return Rows(scipy.special.softmax(scores, axis=1).tolist(), labels.tolist(), [name] * len(scores))


def some(count: int, choices: int, temperature: float, seed: int = 0) -> Rows:
    scores = np.random.default_rng(seed).normal(size=(count, choices)) * 3
    return rows_of(scores, temperature, seed + 1, name=str(choices))


def together(*parts: Rows) -> Rows:
    return Rows(
        [row for part in parts for row in part.probabilities],
        [label for part in parts for label in part.labels],
        [name for part in parts for name in part.sets],
    )


class Told(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier whose scores are its input."""

    def fit(self, x: Scores, y: Scores) -> Told:
        self.classes_ = np.unique(y)
        return self

    def predict(self, x: Scores) -> Scores:
        return self.classes_[x.argmax(1)]  # type: ignore[no-any-return]

    def decision_function(self, x: Scores) -> Scores:
        return x


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_equals_scikit_learns(temperature: float) -> None:
    scores = np.random.default_rng(7).normal(size=(1500, 4)) * 3
    rows = rows_of(scores, temperature)
    labels = np.array(rows.labels)
    theirs = CalibratedClassifierCV(FrozenEstimator(Told().fit(scores, labels)), method="temperature")
    expected = theirs.fit(scores, labels).predict_proba(scores)
    found = temperature_of(rows)
    np.testing.assert_allclose(apply(Temperature(found), rows.probabilities), expected, atol=1e-3)
    assert found == pytest.approx(temperature, rel=0.1)


def test_temperature_has_the_least_log_loss_over_rows_of_any_number_of_choices() -> None:
    rows = together(some(300, 2, 2.0), some(300, 5, 3.0))

    def loss(logarithm: float) -> float:
        calibrated = apply(Temperature(float(np.exp(logarithm))), rows.probabilities)
        return -float(np.mean([np.log(row[label]) for row, label in zip(calibrated, rows.labels, strict=True)]))

    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6})
    assert temperature_of(rows) == pytest.approx(np.exp(best.x), rel=1e-3)


def test_platt_has_the_least_log_loss() -> None:
    scores = np.random.default_rng(1).normal(size=(800, 1)) * 2
    rows = rows_of(np.hstack([0 * scores + 0.7, scores]), 2.0)
    log_odds = scipy.special.logit([row[1] for row in rows.probabilities])

    def loss(line: Scores) -> float:
        return float(np.logaddexp(0, -(2 * np.array(rows.labels) - 1) * (line[0] * log_odds + line[1])).mean())

    best = scipy.optimize.minimize(loss, [1.0, 0.0]).x
    found = learn_platt(rows)
    assert (found.slope, found.intercept) == pytest.approx(tuple(best), abs=2e-3)


def test_isotonic_follows_scikit_learns_steps() -> None:
    scores = np.random.default_rng(2).normal(size=(4000, 1)) * 2
    rows = rows_of(np.hstack([np.zeros_like(scores), scores]), 3.0)
    p = np.array([row[1] for row in rows.probabilities])
    steps = IsotonicRegression(out_of_bounds="clip").fit_transform(p, rows.labels)
    found = learn_isotonic(rows)
    assert np.mean(np.abs(found(p) - steps)) < 0.02
    assert 0 < found.calibrated[0] < found.calibrated[-1] < 1


def test_the_form_is_the_simplest_that_held_out_rows_ask_for() -> None:
    exact = learn(together(some(500, 2, 1.0), some(500, 5, 1.0)), "choices")
    same = learn(together(some(500, 2, 2.5), some(500, 5, 2.5)), "choices")
    other = learn(together(some(500, 2, 1.2), some(500, 5, 4.0)), "choices")
    assert (exact.form, exact.calibration) == ("none", None)
    assert same.form == "one temperature"
    assert isinstance(other.calibration, Temperature)
    assert set(other.calibration.by_choices) == {2, 5}


def test_a_number_of_choices_with_few_rows_gets_no_temperature_of_its_own() -> None:
    found = learn(together(some(600, 2, 1.2), some(600, 5, 4.0), some(60, 3, 4.0)), "choices").calibration
    assert isinstance(found, Temperature)
    assert set(found.by_choices) == {2, 5}


def test_an_events_form_is_chosen_by_cross_validation() -> None:
    scores = np.random.default_rng(3).normal(size=(3000, 1)) * 2
    line = rows_of(np.hstack([0 * scores + 1, scores]), 2.0)
    assert isinstance(learn(line, "event").calibration, Platt)
    dice = np.random.default_rng(4)
    p = dice.random(6000)
    bent = np.where(p < 0.5, 0.15 * p, np.where(p < 0.6, 0.075 + 7 * (p - 0.5), 0.775 + 0.1 * (p - 0.6)))
    labels = (dice.random(6000) < bent).astype(int).tolist()
    steps = Rows(np.stack([1 - p, p], 1).tolist(), labels, ["a"] * 6000)
    assert isinstance(learn(steps, "event").calibration, Isotonic)


def test_held_out_rows_are_better_calibrated_than_before() -> None:
    found = learn(some(2000, 3, 3.0), "choices")
    before = calibration_error(found.before.confidence, found.before.hit)
    after = calibration_error(found.held_out.confidence, found.held_out.hit)
    assert before > 0.15
    assert after < 0.04
    assert (found.before.hit == found.held_out.hit).all()


def test_no_row_is_judged_by_a_map_that_saw_it() -> None:
    rows = some(400, 3, 2.0)
    folds = folds_of(rows.sets)
    flipped = Rows(
        rows.probabilities, [(y + 1) % 3 if f == 0 else y for y, f in zip(rows.labels, folds, strict=True)], rows.sets
    )
    plain, other = learn(rows, "choices").held_out, learn(flipped, "choices").held_out
    np.testing.assert_array_equal(plain.confidence[folds == 0], other.confidence[folds == 0])
    assert (plain.confidence[folds != 0] != other.confidence[folds != 0]).any()


def test_every_fold_has_its_share_of_every_set() -> None:
    names = ["a"] * 100 + ["b"] * 33
    folds = folds_of(names)
    assert set(np.bincount(folds[:100])) == {10}
    assert set(np.bincount(folds[100:], minlength=10)) == {3, 4}


def right(count: int) -> Rows:
    return Rows(
        [(0.9, 0.1) if i % 2 else (0.1, 0.9) for i in range(count)], [1 - i % 2 for i in range(count)], ["a"] * count
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (some(99, 3, 1.0), "99 labelled rows; a calibration needs at least 100"),
        (Rows([(0.4, 0.6)] * 200, [1] * 200, ["a"] * 200), "all 200 rows have the label 1"),
        (right(200), "answered right"),
        (Rows(right(200).probabilities, [1 - y for y in right(200).labels], ["a"] * 200), "no better than guessing"),
    ],
    ids=["too few", "one label", "all right", "all wrong"],
)
def test_rows_that_tell_nothing_are_refused(rows: Rows, words: str) -> None:
    with pytest.raises(Unlearnable, match=words):
        learn(rows, "choices")
