"""What a worker counts reaches the metrics page, all of it, without one report per batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from handlers.core.messages import Reply
from handlers.torchserve import metrics
from handlers.torchserve.metrics import WorkerCounts

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPORT_EVERY_S", 0.05)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def total(reports: list[dict[str, int]], name: str) -> int:
    return sum(report.get(name, 0) for report in reports)


def test_what_was_counted_last_is_reported_without_another_batch() -> None:
    reports: list[dict[str, int]] = []
    counts = WorkerCounts(reports.append)
    for _ in range(30):
        counts.add([Reply(b""), Reply(b"", code=422)], seconds=0.002)
    until(lambda: total(reports, "handler_batches_total") == 30)
    time.sleep(0.2)
    counts.add([], seconds=0.0)
    until(lambda: total(reports, "handler_batches_total") == 31)
    assert {name: total(reports, name) for name in metrics.NAMES} == {
        "handler_batches_total": 31,
        "handler_requests_total": 60,
        "handler_errors_total": 30,
        "handler_milliseconds_total": 60,
    }


def test_many_batches_are_few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPORT_EVERY_S", 0.3)
    reports: list[dict[str, int]] = []
    counts = WorkerCounts(reports.append)
    started = time.monotonic()
    for _ in range(2000):
        counts.add([], seconds=0.0)
    until(lambda: total(reports, "handler_batches_total") == 2000)
    assert len(reports) <= 1 + (time.monotonic() - started) / 0.3


def test_batches_shorter_than_a_millisecond_add_up() -> None:
    reports: list[dict[str, int]] = []
    counts = WorkerCounts(reports.append)
    for _ in range(2500):
        counts.add([], seconds=0.0004)
    until(lambda: total(reports, "handler_batches_total") == 2500)
    assert total(reports, "handler_milliseconds_total") in (999, 1000)


def test_what_others_count_is_reported_as_it_grows_and_states_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPORT_EVERY_S", 1e6)
    reports: list[dict[str, int]] = []
    totals: dict[str, int] = {"hits_total": 0, "asking": 0}
    counts = WorkerCounts(reports.append, totals=lambda: totals)
    for hits, asking in ((0, 0), (5, 1), (5, 1), (9, 0)):
        totals |= {"hits_total": hits, "asking": asking}
        counts.flush()
    assert [report.get("hits_total") for report in reports] == [None, 5, None, 4]
    assert [report["asking"] for report in reports] == [0, 1, 1, 0]


def test_a_report_that_fails_is_not_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[Any] = []

    def report(counts: dict[str, int]) -> None:
        reports.append(counts)
        if len(reports) == 1:
            raise OSError("the log's disk is full")

    counts = WorkerCounts(report)
    counts.add([], seconds=0.0)
    until(lambda: bool(reports) and bool(caplog.records))
    counts.add([], seconds=0.0)
    until(lambda: len(reports) == 2)
    assert reports[1]["handler_batches_total"] == 1
