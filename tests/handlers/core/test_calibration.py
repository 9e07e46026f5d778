"""Calibration changes how sure an answer is, never which one it is."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from marctl_handlers.core.calibration import Calibration, Isotonic, Platt, Temperature, softmax

SCORES = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=16)
NEAR = st.lists(st.integers(0, 3).map(lambda ulps: 1 + ulps * math.ulp(1.0)), min_size=2, max_size=5)
TEMPERATURES = st.floats(min_value=0.01, max_value=100)
POINTS = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=9, unique=True).map(sorted)
SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=20).map(sorted)


@given(SCORES | NEAR, TEMPERATURES)
def test_the_choice_is_that_of_the_highest_score_at_any_temperature(scores: list[float], temperature: float) -> None:
    for calibration in (None, Temperature(temperature), Temperature(1.0, {len(scores): temperature})):
        shares = softmax(scores, calibration)
        assert shares.index(max(shares)) == scores.index(max(scores))


@given(SCORES, TEMPERATURES)
def test_shares_sum_to_one_and_rise_with_the_score(scores: list[float], temperature: float) -> None:
    shares = softmax(scores, Temperature(temperature))
    assert math.fsum(shares) == pytest.approx(1)
    by_score = [share for _, share in sorted(zip(scores, shares, strict=True))]
    assert all(low <= high for low, high in pairwise(by_score))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=16), TEMPERATURES)
def test_softmax_equals_scipys_of_the_divided_scores(scores: list[float], temperature: float) -> None:
    expected = scipy.special.softmax(np.array(scores) / temperature)
    np.testing.assert_allclose(softmax(scores, Temperature(temperature)), expected, rtol=1e-9, atol=1e-12)


def test_a_number_of_choices_that_is_not_named_takes_the_common_temperature() -> None:
    calibration = Temperature(3.0, {2: 2.0})
    assert [calibration.of(n) for n in (2, 3)] == [2.0, 3.0]


@given(st.floats(0.01, 100), st.floats(-20, 20), SHARES)
def test_platt_equals_a_sigmoid_of_the_line_and_never_falls(slope: float, intercept: float, p: list[float]) -> None:
    given_p = np.clip(p, 1e-9, 1 - 1e-9)
    found = Platt(slope, intercept)(given_p)
    np.testing.assert_allclose(found, scipy.special.expit(slope * scipy.special.logit(given_p) + intercept), atol=1e-9)
    assert (np.diff(found) >= 0).all()


def test_platt_takes_certainty() -> None:
    assert Platt(1.0, 0.0)(np.array([0.0, 1.0])) == pytest.approx([0, 1], abs=1e-11)


@given(POINTS, POINTS, SHARES)
def test_isotonic_goes_through_its_points_and_never_falls(x: list[float], y: list[float], p: list[float]) -> None:
    count = min(len(x), len(y))
    curve = Isotonic(x[:count], y[:count])
    assert curve(np.array(x[:count])) == pytest.approx(y[:count])
    assert (np.diff(curve(np.array(p))) >= 0).all()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"method": "temperature", "temperature": 0}, "> 0.0"),
        ({"method": "temperature", "by_choices": {1: 2.0}}, ">= 2"),
        ({"method": "temperature", "by_choices": {"2": 2.0}}, "Expected `int`"),
        ({"method": "temperature", "heat": 1}, "unknown field `heat`"),
        ({"method": "guess"}, "Invalid value 'guess'"),
        ({"method": "platt", "slope": -1.0, "intercept": 0.0}, "> 0.0"),
        (
            {"method": "isotonic", "uncalibrated": [0.1, 0.2], "calibrated": [0.2, 0.2]},
            "calibrated: expected each point",
        ),
        ({"method": "isotonic", "uncalibrated": [0.1, 0.2, 0.3], "calibrated": [0.1, 0.2]}, "3 uncalibrated points"),
    ],
)
def test_a_map_that_could_change_the_order_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(section, Calibration)
