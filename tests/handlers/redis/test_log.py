"""The worker's side of the prediction log, against a real Redis: what is written, and what nobody may notice."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.errors import Invalid, LoadError
from marctl_handlers.core.messages import Logged, Request
from marctl_handlers.core.settings import Log
from marctl_handlers.redis import log as prediction_log
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.redis.log import (
    DECLARATIONS,
    FIELD,
    LABELS,
    PREDICTIONS,
    Declaration,
    LabelRecord,
    LabelType,
    PredictionLog,
    PredictionRecord,
    declaration_id,
)
from marctl_handlers.redis.spill import DECLARATION, LABEL, PREDICTION, frames_of
from marctl_handlers.serving import take_label
from marctl_handlers.tasks.multiple_choice.schema import LOG_COLUMNS, Question
from tests.handlers.loading import load
from tests.questions import some_questions
from tests.redis_servers import TestRedis, memory_left

QUESTION = {"question": "Why?", "choices": ["a knife", "a cloud"]}
ASKED = Question("Why?", ("a knife", "a cloud"))
KEPT = {"prediction": 1, "confidence": 0.75, "probabilities": [0.25, 0.75]}
PATIENCE_S = 15.0


@pytest.fixture
def make_log(redis_server: TestRedis) -> Iterator[Callable[..., PredictionLog]]:
    """Makes logs of a worker each; the streams are empty before."""
    redis_server.client.flushall()
    made: list[PredictionLog] = []

    def make(url: str = redis_server.url, version: str = "1.0", **settings: Any) -> PredictionLog:
        made.append(a_log(url, version, **settings))
        return made[-1]

    yield make
    for log in made:
        log.close()


def a_log(url: str, version: str = "1.0", label_type: LabelType = "int", **settings: Any) -> PredictionLog:
    declaration = Declaration("quiz", LOG_COLUMNS, label_type)
    link = RedisLink(url, reply_timeout_s=1.0)
    return PredictionLog(Log(**settings), declaration, version, "d" * 64, link)


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
    return Request(json.dumps(body).encode(), request_id, headers=named)


def logged(prediction_id: str, headers: dict[str, str] | None = None, **fields: Any) -> Logged:
    made: dict[str, Any] = {
        "request_id": prediction_id,
        "prediction_id": prediction_id,
        "time_us": time.time_ns() // 1000,
        "headers": headers or {},
        "question": ASKED,
        "kept": KEPT,
        "error": None,
        "code": 200,
        "cache": None,
        "version": None,
        "queue_ms": 1.5,
        "handler_ms": 5.0,
        "size_bytes": 100,
    }
    return Logged(**made | fields)


def answered(log: PredictionLog, request_id: str, **headers: str) -> None:
    log.add(logged(request_id, {name.replace("_", "-"): value for name, value in headers.items()}))


def test_record_holds_what_the_client_was_told(
    task: Any, redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    task.log = make_log(input="whole")
    before = time.time()
    [reply] = task.answer([request(QUESTION, x_user_id="ann", x_fallback_from="2.0")])
    [record] = records(redis_server, 1)
    told = json.loads(reply.body)
    assert before - 1 < record.time_us / 1e6 < time.time() + 1
    assert record.outcome == {name: told[name] for name in ("prediction", "confidence", "probabilities")}
    assert (record.prediction_id, record.model, record.version) == (told["prediction_id"], "quiz", "1.0")
    assert record.handler_ms == told["latency_ms"]
    assert json.loads(record.input or "") == QUESTION
    assert (record.fallback_from, record.role, record.shadow, record.cache) == ("2.0", "fallback", False, None)
    assert (record.digest, record.code, record.error) == ("d" * 64, 200, None)


def test_a_record_says_how_its_request_was_assigned(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    log = make_log()
    answered(log, "a", x_assignment="split", x_experiment="choices-v2")
    answered(log, "b", x_shadow_version="2.0")
    answered(log, "c", x_experiment="x" * 10_000)
    a, b, c = records(redis_server, 3)
    assert (a.role, a.experiment, a.shadow) == ("split", "choices-v2", False)
    assert (b.role, b.experiment, b.shadow) == ("shadow", None, True)
    assert len(c.experiment or "") < 1000


def test_an_earlier_answer_of_another_version_is_logged_as_its_own(
    redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    """A worker of 1.0 serves what 2.0 once said, because 2.0 has failed."""
    make_log().add(logged("order-7", {"x-fallback-from": "2.0"}, version="2.0", cache="stale"))
    [record] = records(redis_server, 1)
    assert (record.version, record.digest, record.fallback_from, record.cache) == ("2.0", "", "2.0", "stale")


def test_each_question_of_a_request_is_a_record_and_so_is_a_failure(
    task: Any, redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    task.log = make_log(input="whole")
    good = some_questions(2, seed=3)
    task.answer([request({"instances": [good[0], {}, good[1]]}, "many"), request({}, "bad"), request(QUESTION, "one")])
    found = records(redis_server, 5)
    assert {record.prediction_id: (record.code, record.error) for record in found} == {
        "many:0": (200, None),
        "many:1": (422, "invalid_request"),
        "many:2": (200, None),
        "bad": (422, "invalid_request"),
        "one": (200, None),
    }
    assert {record.prediction_id for record in found if record.outcome is None} == {"many:1", "bad"}
    assert {record.prediction_id for record in found if record.input is None} == {"many:1", "bad"}
    assert sorted(record.sequence for record in found) == [1, 2, 3, 4, 5]


def test_a_worker_declares_what_its_outcomes_are(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    answered(make_log(), "a")
    [record] = records(redis_server, 1)
    encoded = redis_server.client.hget(DECLARATIONS, record.declaration)
    assert declaration_id(encoded) == record.declaration
    declared = msgspec.json.decode(encoded, type=Declaration)
    assert (declared.model, declared.columns, declared.label_type) == ("quiz", LOG_COLUMNS, "int")


@pytest.mark.parametrize(
    ("name", "words"),
    [("a b", "letters, digits"), ("", "letters, digits"), ("x", "2 times")],
)
def test_columns_that_no_table_can_have_stop_the_load(tmp_path: Path, name: str, words: str) -> None:
    columns = (LogColumn("x", "int"), LogColumn(name, "int"))
    with pytest.raises(LoadError, match=words):
        PredictionLog(Log(), Declaration("quiz", columns), "1.0", "", RedisLink(f"unix://{tmp_path}/none.sock"))


def test_nothing_that_a_task_keeps_can_fail_a_prediction(redis_server: TestRedis, make_log: Callable[..., Any]) -> None:
    """What cannot be encoded is lost alone; numbers of numpy are numbers."""
    log = make_log(input="whole")
    log.add(logged("object", kept={"prediction": object()}))
    log.add(logged("question", question=object()))
    log.add(logged("\udcff", kept=KEPT))
    log.add(logged("numpy", kept={"prediction": np.int64(1), "probabilities": np.ones(2, np.float32)}))
    log.add(None)
    [record] = records(redis_server, 1)
    assert record.outcome == {"prediction": 1, "probabilities": [1.0, 1.0]}
    until(lambda: log.dropped == 4)


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
    assert [entry.record.prediction_id for entry in log._queue] == [f"id-{i}" for i in range(900, 1000)]


def test_large_questions_are_bounded_by_their_bytes(
    tmp_path: Path, make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "QUEUE_BYTES", 10_000)
    log = make_log(f"unix://{tmp_path}/none.sock")
    for i in range(100):
        log.add(logged(f"id-{i}", size_bytes=1000))
    assert (len(log._queue), log.dropped) == (10, 90)


def test_one_large_request_takes_no_neighbours_place(
    task: Any, tmp_path: Path, make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body counts once, however many questions it holds."""
    log = task.log = make_log(f"unix://{tmp_path}/none.sock")
    body = {"instances": some_questions(40, seed=3)}
    monkeypatch.setattr(prediction_log, "QUEUE_BYTES", 2 * len(json.dumps(body)))
    task.answer([request(QUESTION, "neighbour"), request(body, "large")])
    assert (len(log._queue), log.dropped) == (41, 0)


def test_what_a_short_outage_left_in_the_queue_is_written_afterwards(tmp_path: Path) -> None:
    server = TestRedis(tmp_path)
    log = a_log(server.url)
    answered(log, "before")
    until(lambda: log.written == 1)
    server.kill()
    for i in range(50):
        answered(log, f"during-{i}")
    until(lambda: not log._link.available)
    for i in range(50):
        answered(log, f"later-{i}")
    server.start()
    until(lambda: log.written == 101)
    assert len(records(server, 100)) == 100
    log.close()
    server.stop()


def test_a_batch_without_a_reply_is_sent_again_and_comes_once(
    redis_server: TestRedis, make_log: Callable[..., Any]
) -> None:
    """Redis may have taken it before it fell silent."""
    log = make_log()
    log._link._timeout_s = 0.05
    answered(log, "before")
    records(redis_server, 1)
    for i in range(5):
        with redis_server.frozen():
            answered(log, f"sent-{i}")
            time.sleep(0.3)
        until(lambda: log.written == i + 2)  # noqa: B023  # called within this round
    assert [record.prediction_id for record in records(redis_server, 6)] == ["before", *(f"sent-{i}" for i in range(5))]
    assert (log.dropped, log._link.failures > 0) == (0, True)


@pytest.fixture
def spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the stack names to its workers."""
    monkeypatch.setenv("MARCTL_SPILL", str(tmp_path / "spill"))
    return tmp_path / "spill"


def spilled(folder: Path) -> dict[int, list[Any]]:
    """The decoded frames of all files, by kind."""
    found: dict[int, list[Any]] = {DECLARATION: [], PREDICTION: [], LABEL: []}
    for path in folder.glob("*.spill"):
        frames, torn = frames_of(path.read_bytes())
        assert torn == b""
        assert frames[0].kind == DECLARATION
        for kind, payload in frames:
            decode = msgspec.json.decode if kind == DECLARATION else msgspec.msgpack.decode
            found[kind].append(decode(payload))
    return found


def test_without_redis_records_go_to_a_file(tmp_path: Path, spill: Path, make_log: Callable[..., Any]) -> None:
    log = make_log(f"unix://{tmp_path}/none.sock")
    for i in range(200):
        answered(log, f"id-{i}", x_user_id="ann")
    log.label(b'{"prediction_id": "id-3", "label": 1}')
    until(lambda: log.spilled == 201)
    found = spilled(spill)
    assert [record["prediction_id"] for record in found[PREDICTION]] == [f"id-{i}" for i in range(200)]
    assert [(record["prediction_id"], record["label"]) for record in found[LABEL]] == [("id-3", 1)]
    assert found[DECLARATION][0]["model"] == "quiz"
    assert {path.stat().st_mode & 0o077 for path in [spill, *spill.iterdir()]} == {0}
    assert (log.written, log.dropped) == (0, 0)


def test_users_are_hashed_alike_with_redis_and_without_it(
    redis_server: TestRedis, tmp_path: Path, spill: Path, make_log: Callable[..., Any]
) -> None:
    """Also by workers that start while Redis is away."""
    redis_server.client.set(prediction_log.SALT, "of another stack")
    answered(make_log(), "a", x_user_id="ann")
    [record] = records(redis_server, 1)
    absent = make_log(f"unix://{tmp_path}/none.sock")
    answered(absent, "b", x_user_id="ann")
    until(lambda: absent.spilled == 1)
    assert [each["user"] for each in spilled(spill)[PREDICTION]] == [record.user]


def test_workers_that_start_at_once_without_redis_share_a_salt(
    tmp_path: Path, spill: Path, make_log: Callable[..., Any]
) -> None:
    with ThreadPoolExecutor(8) as threads:
        logs = list(threads.map(lambda _: make_log(f"unix://{tmp_path}/none.sock"), range(8)))
    assert len({log._salt for log in logs}) == 1


def test_what_a_full_redis_refuses_goes_to_a_file(
    redis_server: TestRedis, spill: Path, make_log: Callable[..., Any]
) -> None:
    log = make_log()
    answered(log, "fits")
    records(redis_server, 1)
    with full(redis_server):
        answered(log, "refused")
        until(lambda: log.spilled == 1)
    answered(log, "fits again")
    assert [record.prediction_id for record in records(redis_server, 2)] == ["fits", "fits again"]
    assert [record["prediction_id"] for record in spilled(spill)[PREDICTION]] == ["refused"]


def test_spill_files_are_bounded_and_what_they_do_not_take_is_counted(
    tmp_path: Path, spill: Path, make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARCTL_SPILL_BYTES", "100000")
    log = make_log(f"unix://{tmp_path}/none.sock")
    for i in range(1000):
        answered(log, f"id-{i}")
    until(lambda: log.spilled + log.dropped == 1000)
    assert log.dropped > 0
    assert len(spilled(spill)[PREDICTION]) == log.spilled > 0
    assert sum(path.stat().st_size for path in spill.iterdir()) <= 100_000


def test_a_full_disk_takes_whole_records_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_log: Callable[..., Any]
) -> None:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        monkeypatch.setenv("MARCTL_SPILL", str(disk))
        log = make_log(f"unix://{tmp_path}/none.sock", input="whole")
        for i in range(100):
            log.add(logged(f"id-{i}", question=Question("x" * 5000, ("a", "b"))))
        until(lambda: log.spilled + log.dropped == 100)
        assert log.spilled > 0
        assert log.dropped > 0
        assert len(spilled(disk)[PREDICTION]) == log.spilled
        log.close()


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}"]
    if os.geteuid() != 0 or subprocess.run(["mount", *options, "none", str(folder)], capture_output=True).returncode:
        pytest.skip("this user may mount no file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(server: TestRedis) -> Iterator[None]:
    limits = server.client.config_get("maxmemory*")
    memory_left(server.client, -100_000)  # what clients hold comes and goes
    try:
        yield
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            server.client.config_set(name, limits[name])


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
    with full(redis_server):
        answered(log, "refused")
        until(lambda: log.dropped == 1)
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
    assert log._link.wait_available(PATIENCE_S)
    for i in range(100):
        answered(log, f"id-{i}")
    log.close()
    assert redis_server.client.xlen(PREDICTIONS) == 100


def label(task: Any, body: bytes | None) -> tuple[int, Any]:
    reply = take_label(task, Request(body, "x"))
    return reply.code, json.loads(reply.body)


def test_a_true_label_goes_to_its_own_stream(redis_server: TestRedis, make_log: Callable[..., Any], task: Any) -> None:
    task.log = make_log()
    assert task.log._link.wait_available(PATIENCE_S)
    code, told = label(task, b'{"prediction_id": "order-7:1", "label": 3, "model": "quiz"}')
    assert (code, told["prediction_id"], told["label"]) == (202, "order-7:1", 3)
    until(lambda: redis_server.client.xlen(LABELS) == 1)
    [(_, fields)] = redis_server.client.xrange(LABELS)
    record = msgspec.msgpack.decode(fields[FIELD], type=LabelRecord)
    assert (record.prediction_id, record.label, record.source) == ("order-7:1", 3, "feedback")
    assert (record.model, record.sequence) == ("quiz", 1)


@pytest.mark.parametrize(
    ("label_type", "given", "kept"),
    [("str", '"good"', "good"), ("float", "0.5", 0.5), ("float", "2", 2.0), ("int", "-3", -3)],
)
def test_a_label_has_the_type_that_the_task_declares(
    redis_server: TestRedis, make_log: Callable[..., Any], label_type: LabelType, given: str, kept: Any
) -> None:
    log = make_log(label_type=label_type)
    assert log._link.wait_available(PATIENCE_S)
    log.label(f'{{"prediction_id": "a", "label": {given}}}'.encode())
    until(lambda: redis_server.client.xlen(LABELS) == 1)
    [(_, fields)] = redis_server.client.xrange(LABELS)
    record = msgspec.msgpack.decode(fields[FIELD], type=LabelRecord)
    assert (record.label, type(record.label)) == (kept, type(kept))
    with pytest.raises(Invalid, match=r"\$\.label"):
        log.label(b'{"prediction_id": "a", "label": []}')


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
        (b'{"prediction_id": "a b", "label": 1}', 422, "$.prediction_id"),
        (b'{"prediction_id": "a", "label": 1, "lable": 1}', 422, "lable"),
        (b'{"prediction_id": "a", "label": 1, "model": "other"}', 422, "$.model"),
    ],
)
def test_a_bad_label_is_told_why(
    make_log: Callable[..., Any], task: Any, body: bytes | None, code: int, words: str
) -> None:
    task.log = make_log()
    got, told = label(task, body)
    assert got == code
    assert words in told["detail"]
    assert words == "$.model" or '{"prediction_id": "...", "label": 1}' in told["detail"]


def test_a_label_that_could_be_lost_is_refused(tmp_path: Path, make_log: Callable[..., Any], task: Any) -> None:
    good = b'{"prediction_id": "a", "label": 1}'
    task.log = make_log(f"unix://{tmp_path}/none.sock")
    assert label(task, good)[0] == 503
    task.log = None
    assert label(task, good)[0] == 501
