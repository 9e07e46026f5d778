from __future__ import annotations

from itertools import islice

import pytest

from loadtest.autoscale.hpa import Hpa
from loadtest.autoscale.traces import HIGH_S, LOW_S, day, step, times
from marctl.capacity.decide import Load, Room, Target

TARGET = Target(least=1, most=20, queue_s=0.1, utilisation=0.7)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def load(wanted: int, queue_s: float | None) -> Load:
    return Load(wanted, wanted, 10.0, 0, busy=0.5, busy_s=0.01, queue_s=queue_s)


@pytest.mark.parametrize(
    ("current", "queue_s", "desired"),
    [
        (2, 0.15, 3),  # ceil(2 x 1.5)
        (2, 0.109, 2),  # within the tolerance
        (3, 0.05, 2),
        (1, 5.0, 5),  # ceil(50), and at most four more in a look
        (6, 5.0, 12),  # or twice as many
        (4, None, 4),  # no metric, no change
    ],
)
def test_kubernetes_rule_worked_out_by_hand(current: int, queue_s: float | None, desired: int) -> None:
    rule = Hpa("queue", window_s=0, clock=Clock())
    assert rule(TARGET, load(current, queue_s), Room()).workers == desired


def test_it_looks_every_fifteen_seconds_and_goes_down_to_the_most_that_was_desired_in_the_window() -> None:
    clock = Clock()
    rule = Hpa("queue", window_s=30, clock=clock)
    assert rule(TARGET, load(4, 0.1), Room()).workers == 4
    clock.now = 10
    assert rule(TARGET, load(4, 0.01), Room()).workers == 4, "it has not looked again"
    for clock.now, desired in ((15, 4), (30, 4), (45, 1)):
        assert rule(TARGET, load(4, 0.01), Room()).workers == desired


def test_a_trace_has_its_rates_and_is_the_same_each_time() -> None:
    made = list(times(step(20, 300, 160), 303, 160, seed=1))
    high = [at for at in made if LOW_S <= at < LOW_S + HIGH_S]
    assert len(high) == pytest.approx(300 * HIGH_S, rel=0.05)
    assert len(made) - len(high) == pytest.approx(20 * 100, rel=0.1)
    assert list(islice(times(step(20, 300, 160), 303, 160, seed=1), 100)) == made[:100]


def test_a_day_goes_from_night_to_its_peak_and_never_beyond() -> None:
    rates = [day(20, 300, 240)(second) for second in range(240)]
    assert min(rates) == pytest.approx(20, abs=1)
    assert max(rates) == pytest.approx(300, abs=1)
    assert max(rates[120:160]) == max(rates), "between noon and four"
