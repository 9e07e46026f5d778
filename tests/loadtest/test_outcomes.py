"""Figures of a run."""

from __future__ import annotations

import random

import numpy as np
import pytest

from loadtest.outcomes import NO_ANSWER, Outcomes, value_at


def test_percentiles_are_numpys() -> None:
    source = random.Random(1)
    for n in (1, 2, 99, 100, 1000):
        values = sorted(source.random() for _ in range(n))
        for share in (0.5, 0.95, 0.99, 1.0):
            assert value_at(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_errors_count_against_the_rate_and_not_for_the_latency() -> None:
    outcomes = Outcomes(seconds=2.0)
    for i in range(100):
        outcomes.add(i / 50, i / 50 + 0.010, 200)
    outcomes.add(0.0, 1.5, NO_ANSWER)
    outcomes.add(0.0, 1.5, 503)
    found = outcomes.summary()
    assert (found["requests"], found["errors"], found["rps"]) == (102, 2, 50.0)
    assert found["codes"] == {"no answer": 1, "200": 100, "503": 1}
    assert found["max_ms"] == pytest.approx(10)


def test_each_second_is_told_also_those_without_an_answer() -> None:
    outcomes = Outcomes(seconds=3.0)
    outcomes.add(0.1, 0.2, 200)
    outcomes.add(2.1, 2.6, 200)
    assert [(row["second"], row["answers"], row["p99_ms"]) for row in outcomes.by_second()] == [
        (0, 1, 100.0),
        (1, 0, 0),
        (2, 1, 500.0),
    ]
