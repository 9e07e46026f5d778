"""Whatever fails for one request is that request's failure, and no request makes its neighbours wait for long."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from marctl_handlers.core.messages import Model, Reply, Request
from marctl_handlers.core.pipeline import Pipeline
from tests.handlers.core.small import FaultError, Small, SmallSettings, small
from tests.handlers.loading import ask, send

FINE, ALSO_FINE = {"text": "fine"}, {"text": "also fine"}
ANSWERED_ALL_THE_SAME = ("log_values", "add")


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- one request's fault


@pytest.mark.parametrize(
    "step",
    [
        "decode",
        "check",
        "cost",
        "complete",
        "predict",
        "answer",
        "encode",
        "encoding",
        "refuse",
        *ANSWERED_ALL_THE_SAME,
    ],
)
def test_a_fault_fails_its_own_request_and_is_logged_once_with_its_id(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, _, log = small(most=1000)
    before, bad, after = ask(pipeline, [FINE, {"text": step}, ALSO_FINE])
    assert (before[0], before[1]["length"], after[0], after[1]["length"]) == (200, 4, 200, 9)
    if step in ANSWERED_ALL_THE_SAME:
        assert (bad[0], bad[1]["length"]) == (200, len(step))
    else:
        assert (bad[0], bad[1]) == (500, {"error": "model_failed", "detail": "model small 1.0 failed on this request"})
    [fault] = faults(caplog)
    assert fault.endswith("request id-1")
    assert ("object" if step == "encoding" else f"secret of {step}") in caplog.text
    recorded = {record.request_id: record.error for record in log.records}
    wanted = {"id-0": None, "id-2": None}
    # A refusal that fails is recorded as what it was to tell.
    failed = {"id-1": "invalid_request" if step == "refuse" else "model_failed"}
    assert recorded == wanted | ({} if step in ANSWERED_ALL_THE_SAME else failed)


@pytest.mark.parametrize(
    "step", ["check", "complete", "lacking", "predict", "answer", "encoding", "late", "no outcome", "own error"]
)
def test_a_fault_fails_its_own_instance(step: str, caplog: pytest.LogCaptureFixture) -> None:
    pipeline, _, log = small()
    [(code, reply), (neighbour, _)] = ask(pipeline, [{"instances": [FINE, {"text": step}, {"text": step}, FINE]}, FINE])
    assert (code, neighbour) == (200, 200)
    one, bad, again, two = reply["predictions"]
    assert (one["length"], two["length"]) == (4, 4)
    error = {"late": "out_of_time", "own error": "invalid_request", "lacking": "invalid_request"}.get(
        step, "model_failed"
    )
    assert bad["error"] == again["error"] == error
    assert len(faults(caplog)) == (1 if error == "model_failed" else 0), "once for the request"
    assert [record.error for record in log.records] == [None, error, error, None, None]


@pytest.mark.parametrize("outcomes", [[], [1], [None] * 4, 3, None, iter([])], ids=lambda o: f"{o}".split(" at ")[0])
def test_a_wrong_number_of_outcomes_is_a_fault(
    outcomes: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, task, _ = small()
    monkeypatch.setattr(task, "predict", lambda questions, deadline: outcomes)
    replies = ask(pipeline, [FINE, ALSO_FINE])
    assert [(code, reply["error"]) for code, reply in replies] == [(500, "model_failed")] * 2
    assert [line.rpartition(" ")[2] for line in faults(caplog)] == ["id-0", "id-1"]


def test_the_model_s_own_error_and_its_late_ones_are_told() -> None:
    pipeline, _, _ = small()
    (late, out_of_time), (own, invalid), (fine, _) = ask(pipeline, [{"text": "late"}, {"text": "own error"}, FINE])
    assert (late, out_of_time["error"]) == (504, "out_of_time")
    assert (own, invalid) == (422, {"error": "invalid_request", "detail": "as the model says"})
    assert fine == 200


def test_a_lost_device_fails_the_batch_at_once_and_marks_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, task, _ = small()
    calls: list[int] = []

    def predict(questions: Any, deadline: float) -> Any:
        calls.append(len(questions))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(task, "predict", predict)
    replies = send(pipeline, [FINE] * 3)
    assert [reply.code for reply in replies] == [503] * 3
    assert replies[0].headers["retry-after"] == "1"
    assert calls == [3], "no second try on a device that is lost"
    assert pipeline.broken


def test_torch_s_own_class_of_device_faults_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    pipeline, task, _ = small()

    def predict(*_: Any) -> Any:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(task, "predict", predict)
    send(pipeline, [FINE])
    assert pipeline.broken


def test_a_batch_for_which_memory_is_too_small_is_answered_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    pipeline, task, _ = small()
    calls: list[int] = []
    predict = task.predict

    def with_limit(questions: Any, deadline: float) -> Any:
        calls.append(len(questions))
        if len(questions) > 2 or any(question.text == "huge" for question in questions):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(questions, deadline)

    monkeypatch.setattr(task, "predict", with_limit)
    replies = send(pipeline, [FINE] * 7 + [{"text": "huge"}])
    assert [reply.code for reply in replies] == [200] * 7 + [503]
    assert calls == [8, 4, 2, 2, 4, 2, 2, 1, 1]
    assert b"not enough memory" in replies[-1].body
    assert not pipeline.broken


def test_another_fault_marks_nothing() -> None:
    pipeline, _, _ = small()
    send(pipeline, [{"text": "predict"}])
    assert not pipeline.broken


def test_a_device_that_is_lost_while_explaining_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _, _ = small()
    explainer, explaining, _ = small()
    pipeline.explainer = explainer
    monkeypatch.setattr(Small, "explains", True)

    def predict(*_: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(explaining, "predict", predict)
    body = json.dumps(FINE).encode()
    replies = pipeline.answer([Request(body, "1"), Request(body, "2", explain=True)])
    assert [reply.code for reply in replies] == [200, 503]
    assert pipeline.broken


# --- the cache as a part that may fail


def test_a_stale_only_request_without_a_cache_refuses_itself_alone() -> None:
    pipeline, task, _ = small()
    body = json.dumps(FINE).encode()
    stale = {"x-fallback-stale": "1", "x-fallback-from": "2.0"}
    one, refused, two = pipeline.answer([Request(body, "1"), Request(body, "2", headers=stale), Request(body, "3")])
    assert (one.code, refused.code, two.code) == (200, 503, 200)
    assert refused.headers["retry-after"] == "1"
    assert task.batches == [["fine", "fine"]]


class FailingCache:
    """Fails to look up, or to keep, with one of two equal questions as the one to be computed."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.missing: list[Any] = []

    def look_up(self, items: Any) -> FailingCache:
        if self._where == "look_up":
            raise FaultError("secret")
        self.missing = items[:1]
        return self

    def keep(self, seconds: float) -> None:
        raise FaultError("secret")

    def totals(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("where", ["look_up", "keep"])
def test_a_fault_of_the_cache_fails_nobody(where: str, caplog: pytest.LogCaptureFixture) -> None:
    pipeline, _, log = small()
    pipeline.cache = FailingCache(where)
    assert [(code, reply["length"]) for code, reply in ask(pipeline, [FINE, FINE, ALSO_FINE])] == [
        (200, 4),
        (200, 4),
        (200, 9),
    ]
    assert len(faults(caplog)) == 1
    assert [record.error for record in log.records] == [None] * 3


# --- time


def timed(pipeline: Pipeline, requests: list[Request]) -> tuple[list[Reply], float]:
    started = time.monotonic()
    return pipeline.answer(requests), time.monotonic() - started


def test_the_second_try_one_by_one_ends_with_the_batch_s_time() -> None:
    """Each of ten takes a tenth of a second to fail."""
    pipeline, _, _ = small(batch_seconds=0.25)
    body = json.dumps({"text": "wait and fail"}).encode()
    replies, seconds = timed(pipeline, [Request(body, f"id-{i}") for i in range(10)])
    codes = [reply.code for reply in replies]
    assert codes == sorted(codes)
    assert {500, 504} == set(codes)
    assert seconds < 0.6


def gateway(started_s: float, timeout_ms: str) -> dict[str, str]:
    return {"x-request-start-ms": str(round(started_s * 1000)), "x-request-timeout-ms": timeout_ms}


def test_a_request_whose_time_is_over_is_not_computed_and_its_neighbours_are() -> None:
    pipeline, task, log = small()
    now = time.time()
    texts = ["a", "over", "b", "c", "d"]
    headers = [
        {},
        gateway(now - 5, "4000"),
        gateway(now - 5, "60000"),
        gateway(now - 5, "soon"),
        {"x-request-start-ms": "1"},
    ]
    requests = [
        Request(json.dumps({"text": text}).encode(), text, headers=own, queue_ms=5.0, batch_ms=2.0)
        for text, own in zip(texts, headers, strict=True)
    ]
    replies = pipeline.answer(requests)
    assert [reply.code for reply in replies] == [200, 504, 200, 200, 200]
    assert json.loads(replies[1].body)["error"] == "out_of_time"
    assert task.batches == [["a", "b", "c", "d"]]
    assert [record.error for record in log.records] == [None, "out_of_time", None, None, None]
    assert {(record.queue_ms, record.batch_ms) for record in log.records} == {(5.0, 2.0)}


@pytest.mark.parametrize("start", ["", "-1", "x", "1e3", "٣", "1.2.3", "9" * 400, "."])
@pytest.mark.parametrize("timeout", ["", "-1", "9" * 400, "1000"])
def test_times_that_are_none_are_as_good_as_absent(start: str, timeout: str) -> None:
    pipeline, _, _ = small()
    headers = {"x-request-start-ms": start, "x-request-timeout-ms": timeout}
    assert [reply.code for reply in pipeline.answer([Request(b'{"text": "a"}', "1", headers=headers)])] == [200]


# --- cost

LARGE = "x" * 24
"""With a limit of 80 characters, more than a quarter of it."""


def test_small_requests_go_first_and_large_ones_by_their_cost() -> None:
    pipeline, task, _ = small(most=80)
    bodies = [{"text": LARGE + "xx"}, FINE, {"text": LARGE}, {"instances": [{"text": LARGE}] * 2}, ALSO_FINE]
    assert {reply.code for reply in send(pipeline, bodies)} == {200}
    assert task.batches == [["fine", "also fine"], [LARGE], [LARGE + "xx"], [LARGE, LARGE]]


def test_large_requests_are_computed_while_the_batch_stays_within_its_share() -> None:
    """Of two largest requests: 4 and three times 40, or 4 and twice 80, of 160 characters."""
    for text, codes in (("x" * 40, [200, 200, 200, 503, 200]), ("x" * 80, [200, 503, 503, 503, 200])):
        pipeline, task, log = small(most=80)
        replies = send(pipeline, [{"text": text}] * 4 + [FINE])
        assert [reply.code for reply in replies] == codes
        assert json.loads(replies[3].body)["error"] == "busy"
        assert replies[3].headers["retry-after"] == "1"
        assert task.batches == [["fine"], *[[text]] * (codes.count(200) - 1)]
        assert [record.error for record in log.records] == [None if code == 200 else "busy" for code in codes]


def test_a_large_request_is_computed_even_where_small_ones_took_the_share() -> None:
    pipeline, _, _ = small(most=80)
    bodies = [{"text": "x" * 20}] * 9
    assert [reply.code for reply in send(pipeline, [{"text": LARGE}, *bodies])] == [200] * 10


def test_many_requests_of_usual_size_are_all_computed() -> None:
    """However much they cost together: nobody is refused who asks for no more than others do."""
    pipeline, task, _ = small(most=80)
    assert {reply.code for reply in send(pipeline, [{"text": "x" * 20}] * 64)} == {200}
    assert [len(batch) for batch in task.batches] == [64]


def test_a_request_beyond_the_limit_is_refused_uncomputed() -> None:
    pipeline, task, log = small(most=80)
    over, many, fine = send(pipeline, [{"text": "x" * 81}, {"instances": [{"text": LARGE}] * 5}, FINE])
    assert (over.code, many.code, fine.code) == (413, 413, 200)
    assert json.loads(over.body) == {
        "error": "too_large",
        "detail": "81 characters; one request may bring at most 80; send several requests",
    }
    assert task.batches == [["fine"]]
    assert [record.error for record in log.records] == ["too_large"] * 6 + [None]


# --- records


def test_a_record_s_size_is_its_question_s_share() -> None:
    pipeline, _, log = small()
    body = json.dumps({"instances": [FINE] * 8}).encode()
    pipeline.answer([Request(body, "many"), Request(b'{"text": "one"}', "one")])
    assert [record.size_bytes for record in log.records] == [len(body) // 8] * 8 + [15]


def test_failures_are_recorded_and_samples_are_not() -> None:
    pipeline, _, log = small()
    sample = {"x-sample": "1"}
    sent: list[tuple[bytes, str, dict[str, str]]] = [
        (b"{", "bad", {}),
        (b'{"text": "fine"}', "good", {}),
        (b'{"text": "fine"}', "sample", sample),
        (b"{", "bad sample", sample),
    ]
    requests = [Request(body, name, headers=headers) for body, name, headers in sent]
    pipeline.answer(requests)
    told = [(record.request_id, record.error, record.code, record.kept) for record in log.records]
    assert told == [("bad", "not_json", 400, None), ("good", None, 200, {"length": 4})]
    assert log.records[0].question is None


# --- offline callers


def test_questions_without_bytes_get_answers_or_errors_in_order() -> None:
    from tests.handlers.core.small import Text

    pipeline, _, log = small(most=3)
    found = pipeline.predict([Text("a long text"), Text("predict"), Text("check"), Text("x")])
    assert [getattr(result, "error", None) for result in found] == [None, "model_failed", "model_failed", None]
    assert log.records == []


def test_a_pipeline_is_made_of_a_task_alone() -> None:
    task = Small(SmallSettings(task="small"))
    task.load()
    assert ask(Pipeline(task, Model("m", "1")), [FINE])[0][1]["length"] == 4
