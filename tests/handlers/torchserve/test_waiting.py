"""Against batches whose beginning is known."""

from __future__ import annotations

from marctl_handlers.torchserve.waiting import Wait, Waiting


def filling(waiting: Waiting, requests: list[dict[str, str]], now_ms: float) -> list[float | None]:
    return [wait.batch_ms for wait in waiting.waits(requests, now_ms)]


def headers(*starts_ms: float) -> list[dict[str, str]]:
    return [{"x-request-start-ms": f"{start:.3f}"} for start in starts_ms]


def test_a_batch_at_an_idle_worker_fills_from_its_first_request_on() -> None:
    assert filling(Waiting(), headers(1000, 1002, 1001), 1003) == [3, 1, 2]


def test_what_queued_while_the_worker_computed_waits_for_the_batch_only_from_then_on() -> None:
    waiting = Waiting()
    waiting.freed(1050)
    assert waiting.waits(headers(1000, 1049, 1052), 1053) == [Wait(53, 3), Wait(4, 3), Wait(1, 1)]


def test_what_came_past_the_gateway_has_no_known_wait() -> None:
    assert filling(Waiting(), [{}, *headers(1000), {"x-request-start-ms": "soon"}], 1003) == [None, 3, None]
    assert filling(Waiting(), [], 1003) == []


def test_a_clock_that_was_set_back_makes_no_negative_waits() -> None:
    assert filling(Waiting(), headers(2000), 1000) == [0]
