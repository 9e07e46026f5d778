from __future__ import annotations

import math

import pytest

from marctl.capacity.samples import Counts, between, quantile, read
from marctl.capacity.watch import Watch

PAGE = """# HELP handler_requests_total Requests in these batches.
# TYPE handler_requests_total counter
handler_requests_total{model="m",version="1"} 100.0
handler_seconds_total{model="m",version="1"} 2.5
handler_process_cpu_seconds_total{model="m",version="1"} 2.0
handler_process_resident_memory_bytes{model="m",version="1"} 3e+08
handler_stage_seconds_bucket{le="0.1",model="m",role="split",stage="queue",version="1"} 50.0
handler_stage_seconds_bucket{le="0.1",model="m",role="pinned",stage="queue",version="1"} 10.0
handler_stage_seconds_bucket{le="0.1",model="m",role="sample",stage="queue",version="1"} 7.0
handler_stage_seconds_bucket{le="0.1",model="m",role="split",stage="total",version="1"} 3.0
handler_stage_seconds_bucket{le="+Inf",model="m",role="split",stage="queue",version="1"} 90.0
handler_stage_seconds_sum{model="m",role="split",stage="queue",version="1"} 9.0
batcher_queue_size{model="m",version="1"} 4.0
marctl_workers_ready{model="m",version="1"} 3.0
gateway_attempts_total{code="200",model="m",role="split",version="1"} 90.0
gateway_attempts_total{code="503",model="m",role="split",version="1"} 6.0
marctl_gpu_utilization_ratio{gpu="0"} 0.2
marctl_gpu_utilization_ratio{gpu="1"} 0.6
QueueTime.Milliseconds{Level="Host"} 3
"""


def test_a_page_is_read_by_version() -> None:
    sample = read(PAGE, 1.0)
    found = sample.versions["m", "1"]
    assert (found.answered, found.busy_s, found.cpu_s, found.not_taken) == (100, 2.5, 2.0, 6)
    assert (found.waiting, found.ready, found.memory_bytes, sample.gpu) == (4, 3, 3e8, 0.6)
    assert dict(found.queue) == {0.1: 60.0, math.inf: 90.0}, "samples and other stages are left out"


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        read('handler_requests_total{model="m"', 0.0)


def test_arrivals_are_the_answered_the_refused_and_those_that_wait_more() -> None:
    before = Counts(answered=100, not_taken=5, waiting=10)
    span = between(before, Counts(answered=160, not_taken=9, waiting=26), 4.0)
    assert span is not None
    assert span.arrivals == (60 + 4 + 16) / 4


def test_counters_that_fell_are_those_of_another_stack() -> None:
    assert between(Counts(answered=100), Counts(answered=3), 1.0) is None


def test_quantiles_are_prometheus_own() -> None:
    """By the formula of histogram_quantile, worked out by hand."""
    below = {0.1: 50.0, 0.2: 90.0, 0.5: 100.0, math.inf: 100.0}
    assert quantile(0.5, below) == pytest.approx(0.1)
    assert quantile(0.7, below) == pytest.approx(0.15)
    assert quantile(0.99, below) == pytest.approx(0.47)
    assert quantile(0.99, {0.1: 0.0, math.inf: 10.0}) == 0.1


def test_a_watch_needs_two_looks_and_begins_anew_after_a_change_and_with_a_new_stack() -> None:
    watch = Watch()
    watch.see(0.0, Counts(answered=0, waiting=0, ready=1))
    assert watch.load(1, "p99", 60) is None
    watch.see(2.0, Counts(answered=20, busy_s=0.4, waiting=0, ready=1))
    load = watch.load(1, "p99", 60)
    assert load is not None
    assert (load.arrivals, load.busy_s, load.busy) == (10.0, 0.02, 0.2)
    watch.begin_anew()
    assert watch.load(2, "p99", 60) is None
    watch.see(4.0, Counts(answered=40, waiting=0, ready=1))
    watch.see(6.0, Counts(answered=1, waiting=0, ready=1))
    assert watch.load(2, "p99", 60) is None, "the counters began anew"


def test_requests_that_have_become_dearer_are_seen_at_once() -> None:
    watch = Watch()
    watch.see(0.0, Counts(waiting=0, ready=2))
    watch.see(10.0, Counts(answered=1000, busy_s=1.0, waiting=0, ready=2))
    watch.see(12.0, Counts(answered=1010, busy_s=5.0, waiting=0, ready=2))
    load = watch.load(2, "p99", 60)
    assert load is not None
    assert (load.busy_s, load.busy) == (0.4, 1.0)


def test_a_watch_stays_put_where_the_server_does_not_tell_its_queue() -> None:
    watch = Watch()
    watch.see(0.0, Counts(answered=0, waiting=0, ready=1))
    watch.see(2.0, Counts(answered=20))
    assert watch.load(1, "p99", 60) is None


def test_a_peak_is_told_once_it_was_watched_for_long_enough_and_for_some_starts() -> None:
    watch = Watch(start_s=2.0)
    for second in range(0, 70, 10):
        watch.demanded(second, 5.0 if second == 0 else 1.0)
        expected = None if second < 60 else 5.0
        assert watch.peak(second, 60.0) == expected
    assert watch.peak(71.0, 60.0) == 1.0
    watch.start_s = 30.0
    assert watch.peak(71.0, 60.0) is None, "a start takes 30 s, and the worker is worth five of them"
