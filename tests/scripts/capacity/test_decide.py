from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marctl.capacity.decide import Decision, Load, Room, Target, decide

TARGET = Target(least=1, most=8, queue_s=0.1)
QUIET = Load(wanted=1, ready=1, arrivals=10.0, waiting=0, busy=0.1, busy_s=0.01, cpu_s=0.01, queue_s=0.001, peak=0.2)
"""One worker that is busy for a tenth of the time."""
BUSY = Load(wanted=1, ready=1, arrivals=300.0, waiting=20, busy=1.0, busy_s=0.01, cpu_s=0.01, queue_s=0.4, peak=0.2)
"""One worker that is asked three times as much as it can do."""
ANY = Room()


def test_workers_follow_littles_law_and_work_off_what_gathers_meanwhile() -> None:
    """300/s of 10 ms keep 3 workers busy, 4.3 at 70 %. 200/s are left over for the 4 s of a start; with the 20 waiting
    they are 820 requests of 10 ms, which take 0.82 workers for 10 s."""
    found = decide(TARGET, replace(BUSY, start_s=4.0), ANY)
    assert found.demand == pytest.approx(300 * 0.01 / 0.7 + (20 + 200 * 4) * 0.01 / 10)
    assert (found.workers, found.kind) == (6, "queue")


def test_a_slower_start_takes_more_workers() -> None:
    quick, slow = (decide(TARGET, replace(BUSY, start_s=start_s), ANY) for start_s in (1.0, 20.0))
    assert quick.workers < slow.workers


def test_a_short_queue_takes_no_further_worker_whatever_the_law_says() -> None:
    """Batches grow with the load, and a request gets cheaper."""
    short = replace(BUSY, arrivals=90.0, waiting=0, queue_s=0.02)
    found = decide(TARGET, short, ANY)
    assert found.demand > 1.1
    assert (found.workers, found.kind) == (1, "steady")
    assert decide(TARGET, replace(short, queue_s=0.06), ANY).workers == 2


def test_a_queue_over_its_objective_takes_one_more_worker_even_if_the_law_says_enough() -> None:
    found = decide(TARGET, replace(QUIET, arrivals=50.0, busy=0.5, queue_s=0.2), ANY)
    assert (found.workers, found.kind) == (2, "queue")


def test_workers_that_are_idle_do_not_make_the_queue_and_more_would_not_help() -> None:
    found = decide(TARGET, replace(QUIET, queue_s=0.2), ANY)
    assert (found.workers, found.kind) == (1, "unhelpful")


def test_nothing_is_added_while_workers_start() -> None:
    assert decide(TARGET, replace(BUSY, wanted=3, ready=1), ANY).workers == 3


def test_the_mean_and_what_waits_now_count_as_the_queue_time() -> None:
    """100 requests of 10 ms wait a second, though none has been answered that waited long."""
    assert decide(TARGET, replace(QUIET, arrivals=60.0, waiting=100, busy=0.6, queue_s=None), ANY).kind == "queue"


def test_idle_workers_go_after_the_time_to_hold_and_not_before() -> None:
    idle = replace(QUIET, wanted=4, ready=4, peak=1.2)
    assert (decide(TARGET, idle, ANY).workers, decide(TARGET, idle, ANY).kind) == (2, "idle")
    assert decide(TARGET, replace(idle, peak=None), ANY).workers == 4


def test_a_load_at_the_border_moves_nothing_in_either_direction() -> None:
    """Between 2 workers and 3: a demand that swings by 10 % about 2 changes neither number."""
    for wanted, demand in product((2, 3), (1.95, 2.0, 2.05, 2.19)):
        load = Load(wanted, wanted, demand * 70, 0, 0.7, 0.01, 0.01, 0.06, peak=max(demand, 2.0))
        assert decide(TARGET, load, ANY).workers == wanted


@pytest.mark.parametrize("load", [BUSY, QUIET])
def test_bounds_come_first(load: Load) -> None:
    assert decide(replace(TARGET, least=3), load, ANY) == Decision(3, 0.0, "bounds", "the bounds are 3 to 8")
    assert decide(replace(TARGET, most=2), replace(load, wanted=5), ANY).workers == 2


def test_no_more_than_the_upper_bound_and_it_says_so() -> None:
    found = decide(replace(TARGET, most=3), BUSY, ANY)
    assert found.workers == 3
    assert "held to 3 because 3 is the upper bound" in found.reason
    assert decide(replace(TARGET, most=3), replace(BUSY, wanted=3, ready=3, queue_s=0.4), ANY).kind == "bounds"


def test_memory_holds_back_workers_that_would_not_fit() -> None:
    room = Room(memory_bytes=1100 << 20, worker_bytes=500 << 20)
    assert decide(TARGET, BUSY, room).workers == 3
    full = decide(TARGET, BUSY, replace(room, memory_bytes=-5))
    assert (full.workers, full.kind) == (1, "memory")
    assert "0 MiB may be taken and a worker has 500" in full.reason


def test_cores_hold_back_workers_that_would_wait_for_one() -> None:
    assert decide(TARGET, BUSY, Room(cores=2)).workers == 2
    assert decide(TARGET, replace(BUSY, cpu_s=0.002), Room(cores=2)).workers == 7, "they wait for something else"
    assert decide(TARGET, replace(BUSY, wanted=2, ready=2), Room(cores=0.0)).kind == "cores"


def test_no_more_workers_start_at_a_time_than_there_are_cores() -> None:
    found = decide(TARGET, BUSY, Room(starts=2))
    assert (found.workers, found.kind) == (3, "queue")
    assert "2 at a time, for a start computes" in found.reason


def test_a_full_gpu_gets_no_further_worker() -> None:
    assert decide(TARGET, BUSY, Room(gpu=0.97)).kind == "gpu"
    assert decide(TARGET, BUSY, Room(gpu=0.5)).workers > 1


def test_a_lack_of_room_takes_no_worker_away() -> None:
    crowded = replace(BUSY, wanted=4, ready=4, queue_s=0.5)
    assert decide(TARGET, crowded, Room(cores=1, memory_bytes=0, worker_bytes=1 << 30)).workers == 4


@pytest.mark.parametrize("seen", [{"arrivals": 5.0}, {"arrivals": 0.0, "waiting": 7}])
def test_it_stays_put_where_nothing_is_answered(seen: dict[str, float]) -> None:
    hung = replace(QUIET, wanted=2, busy_s=None, **seen)  # type: ignore[arg-type]
    assert (decide(TARGET, hung, ANY).workers, decide(TARGET, hung, ANY).kind) == (2, "unknown")


def test_no_request_at_all_takes_the_least() -> None:
    asleep = Load(4, 4, 0.0, 0, peak=0.0)
    assert decide(replace(TARGET, least=2), asleep, ANY).workers == 2


share = st.floats(0, 1)
loads = st.builds(
    Load,
    wanted=st.integers(1, 12),
    ready=st.integers(0, 12),
    arrivals=st.floats(0, 1e5),
    waiting=st.integers(0, 10_000),
    busy=share,
    busy_s=st.none() | st.floats(1e-6, 100),
    cpu_s=st.none() | st.floats(1e-6, 100),
    queue_s=st.none() | st.floats(0, 100),
    peak=st.none() | st.floats(0, 100),
    start_s=st.floats(0, 300),
)
rooms = st.builds(
    Room,
    starts=st.none() | st.integers(1, 8),
    cores=st.none() | st.floats(0, 64),
    memory_bytes=st.none() | st.integers(-(1 << 40), 1 << 40),
    worker_bytes=st.none() | st.integers(1, 1 << 36),
    gpu=st.none() | share,
)


@given(loads, rooms, st.integers(1, 4), st.integers(0, 8))
def test_every_decision_is_within_the_bounds_and_says_why(load: Load, room: Room, least: int, more: int) -> None:
    target = Target(least, least + more)
    found = decide(target, load, room)
    assert least <= found.workers <= least + more
    assert found.reason
    assert "\n" not in found.reason
    assert math.isfinite(found.demand)
