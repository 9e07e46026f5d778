"""Figures against scikit-learn's, and against the definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from marctl.train.reliability import Judged, Reliability, calibration_error, diagram, floor_of, interval_of, joined

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)


def drawn(count: int, seed: int, sure: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three choices, sharpened by `sure`, and labels that come as often as the plain ones say."""
    dice = np.random.default_rng(seed)
    scores = 2 * dice.normal(size=(count, 3))
    exact = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = (dice.random((count, 1)) > exact.cumsum(1)).sum(1)
    told = exact**sure
    return told / told.sum(1, keepdims=True), labels


@given(ROWS)
def test_calibration_error_is_the_weighted_gap_of_fifteen_bins(rows: list[tuple[float, bool]]) -> None:
    expected = 0.0
    for number in range(15):
        last = number == 14
        here = [(p, hit) for p, hit in rows if number / 15 <= p < (number + 1) / 15 or (last and p == 1)]
        if here:
            gap = sum(p for p, _ in here) / len(here) - sum(hit for _, hit in here) / len(here)
            expected += abs(gap) * len(here) / len(rows)
    on_an_edge = any(abs(p * 15 - round(p * 15)) < 1e-9 and 0 < p < 1 for p, _ in rows)
    found = calibration_error(np.array([p for p, _ in rows]), np.array([float(hit) for _, hit in rows]))
    assert on_an_edge or found == pytest.approx(expected, abs=1e-9)


def test_brier_score_and_log_loss_equal_scikit_learns() -> None:
    probabilities, labels = drawn(400, seed=1, sure=2)
    found = Reliability.of(Judged.of(probabilities.tolist(), labels.tolist(), "choices"))
    assert found.brier == pytest.approx(brier_score_loss(labels, probabilities, scale_by_half=False))
    assert found.log_loss == pytest.approx(log_loss(labels, probabilities))


def test_an_events_figures_equal_scikit_learns() -> None:
    probabilities, labels = drawn(400, seed=2)
    event, came = probabilities[:, 1], (labels == 1).astype(int)
    found = Reliability.of(Judged.of(np.stack([1 - event, event], 1).tolist(), came.tolist(), "event"))
    assert found.brier == pytest.approx(brier_score_loss(came, event))
    assert found.log_loss == pytest.approx(log_loss(came, event))


def test_the_diagram_equals_scikit_learns_curve() -> None:
    probabilities, labels = drawn(2000, seed=3, sure=2)
    judged = Judged.of(probabilities.tolist(), labels.tolist(), "choices")
    shares, confidences = calibration_curve(judged.hit, judged.confidence, n_bins=15)
    assert [one.share for one in diagram(judged)] == pytest.approx(shares.tolist())
    assert [one.confidence for one in diagram(judged)] == pytest.approx(confidences.tolist())


def test_the_interval_is_as_wide_as_the_error_varies_from_draw_to_draw() -> None:
    errors = []
    for seed in range(60):
        probabilities, labels = drawn(500, seed, sure=2)
        judged = Judged.of(probabilities.tolist(), labels.tolist(), "choices")
        errors.append(calibration_error(judged.confidence, judged.hit))
    assert interval_of(judged) == pytest.approx(1.96 * np.std(errors), rel=0.35)


def test_exact_probabilities_show_the_floor() -> None:
    errors = []
    for seed in range(60):
        probabilities, labels = drawn(500, seed)
        judged = Judged.of(probabilities.tolist(), labels.tolist(), "choices")
        errors.append(calibration_error(judged.confidence, judged.hit))
    assert floor_of(judged.confidence) == pytest.approx(np.mean(errors), rel=0.1)


def test_joined_parts_are_all_their_rows() -> None:
    probabilities, labels = drawn(50, seed=4)
    whole = Judged.of(probabilities.tolist(), labels.tolist(), "choices")
    again = joined([whole[np.arange(50) < 20], whole[np.arange(50) >= 20]])
    assert Reliability.of(again) == Reliability.of(whole)
