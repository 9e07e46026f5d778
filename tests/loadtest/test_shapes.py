"""Load over time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loadtest.shapes import even_times, poisson_times, users_at


def per_fifth(times: list[float], whole_s: float) -> list[int]:
    return [sum(1 for at in times if int(at / whole_s * 5) == fifth) for fifth in range(5)]


def test_even_times_have_equal_gaps() -> None:
    assert list(even_times(4, 1)) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_poisson_times_have_the_rate_and_the_spread_of_independent_clients() -> None:
    times = list(poisson_times(100, 100))
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    # An exponential distribution's standard deviation is its mean.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)


def test_steps_rise_by_fifths_and_a_spike_is_in_the_middle() -> None:
    assert per_fifth(list(even_times(100, 50, "step")), 50) == pytest.approx([200, 400, 600, 800, 1000], abs=2)
    assert per_fifth(list(even_times(100, 50, "spike")), 50) == pytest.approx([200, 200, 1000, 200, 200], abs=2)


def test_there_is_always_a_user() -> None:
    assert [users_at("spike", at, 10, 2) for at in (0, 5, 9.9)] == [1, 2, 1]
    assert users_at("step", 0, 0, 64) == 64
