from __future__ import annotations

from handlers.core.task import Reply
from handlers.torchserve.metrics import WorkerCounts


def test_counts_are_reported_once_a_second_and_none_is_lost() -> None:
    clock, reports = [0.0], []
    counts = WorkerCounts(reports.append, now=lambda: clock[0])
    for step in range(30):
        clock[0] = step / 10
        counts.add([Reply(b""), Reply(b"", code=422)], seconds=0.002)
    assert len(reports) == 2
    clock[0] = 10.0
    counts.add([], seconds=0.0)
    totals = {name: sum(report.get(name, 0) for report in reports) for name in reports[0]}
    assert totals == {
        "handler_batches_total": 31,
        "handler_requests_total": 60,
        "handler_errors_total": 30,
        "handler_milliseconds_total": 60,
    }


def test_batches_shorter_than_a_millisecond_add_up() -> None:
    clock, reports = [0.0], []
    counts = WorkerCounts(reports.append, now=lambda: clock[0])
    for step in range(2500):
        clock[0] = step / 1000
        counts.add([], seconds=0.0004)
    assert [report["handler_milliseconds_total"] for report in reports] == [400, 400]


def test_what_others_count_is_reported_as_it_grows_and_states_as_they_are() -> None:
    clock, reports, totals = [0.0], [], {"hits_total": 0, "asking": 0}
    counts = WorkerCounts(reports.append, now=lambda: clock[0], totals=lambda: totals)
    for hits, asking in ((0, 0), (5, 1), (5, 1), (9, 0)):
        clock[0] += 2
        totals |= {"hits_total": hits, "asking": asking}
        counts.add([], seconds=0.0)
    assert [report.get("hits_total") for report in reports] == [None, 5, None, 4]
    assert [report["asking"] for report in reports] == [0, 1, 1, 0]
