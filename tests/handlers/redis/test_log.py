"""The worker's side of the prediction log, against a real Redis: what is written, and what nobody may notice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.core.settings import Log
from handlers.core.task import Request
from handlers.redis import log as prediction_log
from handlers.redis.link import RedisLink
from handlers.redis.log import FIELD, LABELS, PREDICTIONS, LabelRecord, PredictionLog, PredictionRecord
from handlers.tasks.multiple_choice.task import Answer, Question
from tests.handlers.tasks.multiple_choice.test_task import load, some_questions
from tests.redis_servers import TestRedis, memory_left

QUESTION = {"question": "Why?", "choices": ["a knife", "a cloud"]}
ASKED = Question("Why?", ("a knife", "a cloud"))
PATIENCE_S = 15.0


@pytest.fixture
def make_log(redis_server: TestRedis) -> Iterator[Callable[..., PredictionLog]]:
    """Makes logs of a worker each; the streams are empty before."""
    redis_server.client.flushall()
    made: list[PredictionLog] = []

    def make(url: str = redis_server.url, version: str = "1.0", **settings: Any) -> PredictionLog:
        made.append(PredictionLog(Log(**settings), "quiz", version, "d" * 64, RedisLink(url, reply_timeout_s=1.0)))
        return made[-1]

    yield make
    for log in made:
        log.close()


@pytest.fixture(scope="module")
def task(tiny_model: Callable[[str], Path]) -> Any:
    return load(tiny_model("bert"))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def records(server: TestRedis, count: int) -> list[PredictionRecord]:
    """All records, once there are so many."""
    until(lambda: server.client.xlen(PREDICTIONS) >= count)
    found = server.client.xrange(PREDICTIONS)
    assert len(found) == count
    return [msgspec.msgpack.decode(fields[FIELD], type=PredictionRecord) for _, fields in found]


def request(body: Any, request_id: str = "order-7", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(json.dumps(body).encode(), request_id, header=named.get)


def answered(log: PredictionLog, request_id: str, **headers: str) -> None:
    log.add(request(QUESTION, request_id, **headers), request_id, ASKED, object())


def test_record_holds_what_the_client_was_told(
    task: Any, redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    task.log = make_log(input="whole")
    before = time.time()
    [reply] = task.answer([request(QUESTION, x_user_id="ann", x_fallback_from="2.0")])
    [record] = records(redis_server, 1)
    told = json.loads(reply.body)
    assert before - 1 < record.time_us / 1e6 < time.time() + 1
    found = msgspec.structs.asdict(record)
    for ours, theirs in {"version": "model_version"}.items() | {(n, n) for n in told.keys() & found.keys()}:
        assert found[ours] == told[theirs], ours
    assert {"prediction_id", "model", "prediction", "confidence", "probabilities", "latency_ms"} <= told.keys()
    assert json.loads(record.input or "") == QUESTION
    assert (record.fallback_from, record.shadow, record.cache, record.digest) == ("2.0", False, None, "d" * 64)


def test_an_earlier_answer_of_another_version_is_logged_as_its_own(
    redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    """A worker of 1.0 serves what 2.0 once said, because 2.0 has failed."""
    said = Answer("order-7", "quiz", "2.0", 1, "a cloud", 0.75, [0.25, 0.75], False, 1.0)
    make_log().add(request(QUESTION, x_fallback_from="2.0"), "order-7", ASKED, said, "stale")
    [record] = records(redis_server, 1)
    assert (record.version, record.digest, record.fallback_from, record.cache) == ("2.0", "", "2.0", "stale")


def test_each_question_of_a_request_is_a_record_and_a_bad_one_is_none(
    task: Any, redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    task.log = make_log()
    good = some_questions(2, seed=3)
    task.answer([request({"instances": [good[0], {}, good[1]]}, "many"), request({}, "bad"), request(QUESTION, "one")])
    found = records(redis_server, 3)
    assert {record.prediction_id for record in found} == {"many:0", "many:2", "one"}
    assert sorted(record.sequence for record in found) == [1, 2, 3]


@pytest.mark.parametrize(
    ("keep", "whole", "hashed"), [("whole", True, True), ("hash", False, True), ("none", False, False)]
)
def test_of_an_input_no_more_is_kept_than_the_recipe_says(
    redis_server: TestRedis, make_log: Callable[..., Any], keep: str, whole: bool, hashed: bool
) -> None:
    log = make_log(input=keep)
    answered(log, "a")
    [record] = records(redis_server, 1)
    assert (record.input is not None, record.input_hash is not None) == (whole, hashed)
    [(_, fields)] = redis_server.client.xrange(PREDICTIONS)
    assert (b"knife" in fields[FIELD]) == whole


def test_whole_inputs_are_not_kept_unless_asked_for() -> None:
    assert Log() == Log(input="hash", share=1.0)


def test_users_and_inputs_are_hashed_alike_by_all_workers_and_not_guessable_elsewhere(
    redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    for version in ("1.0", "2.0"):
        log = make_log(version=version)
        answered(log, "a", x_user_id="ann")
        answered(log, "b", x_user_id="bob")
    found = records(redis_server, 4)
    hashes = {name: {record.user for record in found if record.prediction_id == name} for name in ("a", "b")}
    assert (len(hashes["a"]), len(hashes["b"]), len(hashes["a"] | hashes["b"])) == (1, 1, 2)
    assert len({record.input_hash for record in found}) == 1
    redis_server.client.flushall()
    answered(make_log(), "a", x_user_id="ann")
    [elsewhere] = records(redis_server, 1)
    assert elsewhere.user not in hashes["a"]


def test_a_sampled_share_takes_a_request_and_its_copy_or_neither(
    redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    live, shadow = make_log(version="1.0", share=0.25), make_log(version="2.0", share=0.25)
    for i in range(2000):
        answered(live, f"id-{i}")
        answered(shadow, f"id-{i}", x_shadow_version="2.0")
    until(lambda: live.written == live._sequence and shadow.written == shadow._sequence)
    found = records(redis_server, live.written + shadow.written)
    ids = {side: {record.prediction_id for record in found if record.shadow is side} for side in (True, False)}
    assert ids[True] == ids[False]
    assert 400 < len(ids[True]) < 600


def test_a_versions_own_samples_are_not_logged(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    log = make_log()
    answered(log, "sample", x_sample="1")
    answered(log, "real")
    assert [record.prediction_id for record in records(redis_server, 1)] == ["real"]


def test_without_redis_the_oldest_are_dropped_and_counted(
    tmp_path: Path, make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "QUEUE_RECORDS", 100)
    log = make_log(f"unix://{tmp_path}/none.sock")
    began = time.thread_time()
    for i in range(1000):
        answered(log, f"id-{i}")
    assert time.thread_time() - began < 0.5
    assert (log.written, log.dropped) == (0, 900)
    assert [entry.prediction_id for entry in log._queue] == [f"id-{i}" for i in range(900, 1000)]


def test_large_questions_are_bounded_by_their_bytes(
    tmp_path: Path, make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "QUEUE_BYTES", 10_000)
    log = make_log(f"unix://{tmp_path}/none.sock")
    for i in range(100):
        log.add(Request(b"x" * 1000, f"id-{i}"), f"id-{i}", ASKED, object())
    assert (len(log._queue), log.dropped) == (10, 90)


def test_what_a_short_outage_left_in_the_queue_is_written_afterwards(tmp_path: Path) -> None:
    server = TestRedis(tmp_path)
    log = PredictionLog(Log(), "quiz", "1.0", "", RedisLink(server.url, reply_timeout_s=1.0))
    answered(log, "before")
    until(lambda: log.written == 1)
    server.kill()
    for i in range(50):
        answered(log, f"during-{i}")
    until(lambda: not log._link.closed)
    for i in range(50):
        answered(log, f"later-{i}")
    server.start()
    until(lambda: log.written + log.dropped == 101)
    found = {record.prediction_id for record in records(server, log.written - 1)}
    assert {f"later-{i}" for i in range(50)} <= found
    log.close()
    server.stop()


def test_a_frozen_redis_holds_up_no_answer(redis_server: TestRedis, make_log: Callable[..., Any], task: Any) -> None:
    log = task.log = make_log()
    task.answer([request(QUESTION)])
    records(redis_server, 1)
    with redis_server.frozen():
        began = time.thread_time()
        assert [task.answer([request(QUESTION, f"id-{i}")])[0].code for i in range(50)] == [200] * 50
        spent_s = time.thread_time() - began
    task.log = None
    began = time.thread_time()
    assert [task.answer([request(QUESTION, f"id-{i}")])[0].code for i in range(50)] == [200] * 50
    assert spent_s < 2 * (time.thread_time() - began) + 0.1
    until(lambda: log.written + log.dropped == 51)


def test_what_a_full_redis_refuses_is_counted(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    log = make_log()
    answered(log, "fits")
    records(redis_server, 1)
    limits = redis_server.client.config_get("maxmemory*")
    memory_left(redis_server.client, -100_000)  # what clients hold comes and goes
    try:
        answered(log, "refused")
        until(lambda: log.dropped == 1)
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            redis_server.client.config_set(name, limits[name])
    answered(log, "fits again")
    assert [record.prediction_id for record in records(redis_server, 2)] == ["fits", "fits again"]


def test_garbage_in_place_of_the_stream_is_only_counted(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    redis_server.client.set(PREDICTIONS, "garbage")
    log = make_log()
    answered(log, "a")
    until(lambda: log.dropped == 1)


def test_the_streams_length_is_bounded(
    redis_server: TestRedis, make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "STREAM_RECORDS", 200)
    log = make_log()
    for i in range(2000):
        answered(log, f"id-{i}")
    until(lambda: log.written == 2000)
    assert 200 <= redis_server.client.xlen(PREDICTIONS) < 400


def test_closing_writes_what_is_queued(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    log = make_log()
    assert log._link.wait_closed(PATIENCE_S)
    for i in range(100):
        answered(log, f"id-{i}")
    log.close()
    assert redis_server.client.xlen(PREDICTIONS) == 100


def label(task: Any, body: bytes | None) -> tuple[int, Any]:
    reply = task.take_label(Request(body, "x"))
    return reply.code, json.loads(reply.body)


def test_a_true_label_goes_to_its_own_stream(redis_server: TestRedis, make_log: Callable[..., Any], task: Any) -> None:
    task.log = make_log()
    assert task.log._link.wait_closed(PATIENCE_S)
    code, told = label(task, b'{"prediction_id": "order-7:1", "label": 3, "model": "quiz"}')
    assert (code, told["prediction_id"], told["label"]) == (202, "order-7:1", 3)
    until(lambda: redis_server.client.xlen(LABELS) == 1)
    [(_, fields)] = redis_server.client.xrange(LABELS)
    record = msgspec.msgpack.decode(fields[FIELD], type=LabelRecord)
    assert (record.prediction_id, record.label, record.source) == ("order-7:1", 3, "feedback")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (None, 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[1]", 422, "Expected `object`"),
        (b'{"label": 1}', 422, "prediction_id"),
        (b'{"prediction_id": "a"}', 422, "label"),
        (b'{"prediction_id": "a", "label": "yes"}', 422, "$.label"),
        (b'{"prediction_id": "a", "label": -1}', 422, "$.label"),
        (b'{"prediction_id": "a b", "label": 1}', 422, "$.prediction_id"),
        (b'{"prediction_id": "a", "label": 1, "lable": 1}', 422, "lable"),
    ],
)
def test_a_bad_label_is_told_why(
    make_log: Callable[..., Any], task: Any, body: bytes | None, code: int, words: str
) -> None:
    task.log = make_log()
    got, told = label(task, body)
    assert got == code
    assert words in told["detail"]
    assert '{"prediction_id": "...", "label": 1}' in told["detail"]


def test_a_label_that_could_be_lost_is_refused(tmp_path: Path, make_log: Callable[..., Any], task: Any) -> None:
    good = b'{"prediction_id": "a", "label": 1}'
    task.log = make_log(f"unix://{tmp_path}/none.sock")
    assert label(task, good)[0] == 503
    task.log = None
    assert label(task, good)[0] == 501
