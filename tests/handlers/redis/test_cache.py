"""A task with a cache on a real Redis: what it remembers, what it must never mix up, what it survives."""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marctl_handlers.core.messages import FAILED_HEADER, STALE_HEADER, Reply, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import CacheSettings
from marctl_handlers.redis.cache import PREFIX, Cache, key_prefix, open_cache
from marctl_handlers.redis.link import RedisLink
from tests.handlers.core.small import Small, small
from tests.handlers.loading import load, send
from tests.handlers.tasks.multiple_choice.test_task import watch
from tests.questions import some_questions
from tests.redis_servers import TestRedis, memory_left

PATIENCE_S = 10.0
QUESTION = {"question": "Why?", "choices": ["a", "b", "c"]}
OWN_FIELDS = re.compile(rb'("prediction_id":"[^"]*"|"latency_ms":[0-9.]+)')
"""What differs between two answers to one question."""


@pytest.fixture
def server(redis_server: TestRedis) -> TestRedis:
    redis_server.client.flushall()
    redis_server.forget_commands()
    return redis_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[TestRedis]:
    """For tests that break it."""
    started = TestRedis(tmp_path)
    yield started
    started.stop()


class Worker:
    """A loaded version with its own line to Redis; `forwards` lists the rows of each run of its model."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        version: str = "1.0",
        name: str = "quiz",
        digest: str = "d",
        precision: str = "float32",
        **cache: Any,
    ) -> None:
        # No question is large, so that a batch is one run of the model.
        self.quiz = load(
            folder, name=name, version=version, precision=precision, cache=cache or True, max_request_tokens=1 << 20
        )
        self.link = RedisLink(url, reply_timeout_s=1.0)
        self.link.wait_available(PATIENCE_S)
        self.cache = self.quiz.cache = cache_of(self.quiz, digest, self.link)
        self.forwards: list[int] = []
        self.broken = False
        watch(self.quiz, self._count)

    def _count(self, rows: Any) -> None:
        if self.broken:
            raise RuntimeError("broken")
        self.forwards.append(len(rows))

    def ask(self, *bodies: Any, **headers: str) -> list[Reply]:
        """The replies to one batch; every request has these headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
        return self.quiz.answer([Request(body, f"id-{os.urandom(4).hex()}", headers=named) for body in raw])

    def state(self, body: Any, **headers: str) -> str | None:
        [reply] = self.ask(body, **headers)
        return reply.headers.get("x-cache")


def cache_of(pipeline: Pipeline, digest: str, link: RedisLink) -> Cache:
    settings = pipeline.settings.cache_settings
    assert settings is not None
    return Cache(settings, pipeline.task, pipeline.model, digest, link)


@pytest.fixture
def worker(server: TestRedis, tiny_model: Callable[[str], Path]) -> Worker:
    return Worker(tiny_model("bert"), server.url)


def bare(reply: Reply) -> bytes:
    """The body without the request's own fields."""
    return OWN_FIELDS.sub(b"", reply.body)


# --- what is remembered


def test_cached_answers_are_byte_equal_to_fresh_ones(worker: Worker) -> None:
    """Asked one by one, so that the fresh answer is computed in the same company: alone."""
    for question in some_questions(40):
        [first], [again], [fresh] = (
            worker.ask(question),
            worker.ask(question),
            worker.ask(question, cache_control="no-cache"),
        )
        assert [r.headers["x-cache"] for r in (first, again, fresh)] == ["miss", "hit", "miss"]
        assert bare(first) == bare(again) == bare(fresh)
        assert first.body != again.body


def test_a_batch_costs_one_question_and_one_write(server: TestRedis, worker: Worker) -> None:
    questions = some_questions(32)
    for expected in ("miss", "hit"):
        server.forget_commands()
        assert {reply.headers["x-cache"] for reply in worker.ask(*questions)} == {expected}
        worker.link.ask(("PING",))
        assert server.commands()["mget"] == 1
    assert "set" not in server.commands()
    assert len(worker.forwards) == 1


def test_form_does_not_matter(worker: Worker) -> None:
    same = [
        b'{"question": "Why?", "choices": ["a", "b", "c"]}',
        b'{"choices":["a","b","c"],"question":"Why?"}',
        b' { "question" :\n"Wh\\u0079?", "choices": ["a", "b", "\\u0063"], "context": null } ',
        b'{"model": "quiz", "features": {"question": "Why?", "choices": ["a", "b", "c"]}}',
        b'{"instances": [{"question": "Why?", "choices": ["a", "b", "c"]}]}',
    ]
    assert [worker.state(body) for body in same] == ["miss", "hit", "hit", "hit", "hit"]
    assert worker.forwards == [3]


def test_all_that_changes_the_answer_does(worker: Worker) -> None:
    others = [
        QUESTION,
        {"question": "Why?", "choices": ["a", "c", "b"]},
        {"question": "Why?", "choices": ["a", "b"]},
        {"question": "Why? a", "choices": ["b", "c"]},
        {"question": "Why", "choices": ["a", "b", "c"]},
        {"question": "Why?", "choices": ["a", "b", "c"], "context": "So."},
        {"question": "So. Why?", "choices": ["a", "b", "c"]},
        {"question": "Why?", "choices": ["a,b", "c"]},
        {"question": "Why?", "choices": ['a","b', "c"]},
    ]
    assert [worker.state(body) for body in others] == ["miss"] * len(others)
    assert [worker.state(body) for body in others] == ["hit"] * len(others)


def test_labels_are_the_clients_own_words(worker: Worker) -> None:
    """Two Unicode forms of one text are two questions."""
    forms = [unicodedata.normalize(form, "naïve é") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    for form in forms:
        [reply] = worker.ask({"question": "Which?", "choices": [form, form + "!"]})
        answer = json.loads(reply.body)
        assert reply.headers["x-cache"] == "miss"
        assert answer["label"] == [form, form + "!"][answer["prediction"]]


def test_versions_models_archives_and_runtimes_never_share_answers(
    server: TestRedis, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("bert")
    first = Worker(folder, server.url)
    first.ask(QUESTION)
    assert Worker(folder, server.url).state(QUESTION) == "hit"
    others = [
        Worker(folder, server.url, version="1.1"),
        Worker(folder, server.url, name="quiz2"),
        Worker(folder, server.url, digest="e"),
    ]
    others.append(Worker(folder, server.url, precision="bfloat16"))
    assert [other.state(QUESTION) for other in others] == ["miss"] * 4
    assert len(server.client.keys(f"{PREFIX}:*")) == 5


def test_no_two_of_many_questions_collide_across_models_and_versions(
    server: TestRedis, tiny_model: Callable[[str], Path]
) -> None:
    workers = [
        Worker(tiny_model(kind), server.url, name=name, version=version, digest=kind + version)
        for kind, name, version in (("bert", "quiz", "1.0"), ("bert", "quiz", "2.0"), ("roberta", "quiz2", "1.0"))
    ]
    questions = some_questions(150, seed=7)
    fresh = [[bare(reply) for reply in w.ask(*questions)] for w in workers]
    for w, expected in zip(workers, fresh, strict=True):
        w.broken = True
        assert [bare(reply) for reply in w.ask(*questions)] == expected
    assert len(server.client.keys(f"{PREFIX}:*")) == 3 * len({json.dumps(q) for q in questions})


# --- tasks of the user's own


class Reading(msgspec.Struct, frozen=True):
    value: float | None


def test_numbers_that_json_does_not_have_are_questions_of_their_own(server: TestRedis) -> None:
    """As JSON, all but the last would be `null`."""
    cache = small_cache(small()[0], server)
    values = [None, math.nan, math.inf, -math.inf, 0.0]
    assert len({cache.key_of(Reading(value)) for value in values}) == len(values)
    assert cache.key_of(Reading(math.nan)) == cache.key_of(Reading(math.nan))


def small_cache(pipeline: Pipeline, server: TestRedis) -> Cache:
    link = RedisLink(server.url, reply_timeout_s=1.0)
    link.wait_available(PATIENCE_S)
    pipeline.cache = cache_of(pipeline, "d", link)
    return pipeline.cache


def test_a_fault_in_judging_an_earlier_outcome_is_a_miss_of_its_own(
    server: TestRedis, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, task, _ = small()
    cache = small_cache(pipeline, server)
    bodies = [{"text": "a"}, {"text": "fits"}, {"text": "b"}]
    assert [reply.headers["x-cache"] for reply in send(pipeline, bodies)] == ["miss"] * 3
    replies = send(pipeline, bodies)
    assert [(reply.code, reply.headers["x-cache"]) for reply in replies] == [(200, "hit"), (200, "miss"), (200, "hit")]
    assert task.batches == [["a", "fits", "b"], ["fits"]]
    assert [record.getMessage() for record in caplog.records] == ["small 1.0: fits failed, request id-1"]
    assert cache.damaged == 1


def test_an_outcome_that_cannot_be_kept_keeps_no_neighbour_out(
    server: TestRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, task, _ = small()
    small_cache(pipeline, server)
    monkeypatch.setattr(Small, "answer", lambda self, question, outcome, stamp: Reading(outcome.length))
    bodies = [{"text": "a"}, {"text": "encoding"}, {"text": "b"}]
    for expected in (["miss"] * 3, ["hit", "miss", "hit"]):
        replies = send(pipeline, bodies)
        assert [(reply.code, reply.headers["x-cache"]) for reply in replies] == [(200, state) for state in expected]
    assert "an outcome cannot be kept in the cache: TypeError" in caplog.text
    assert task.batches == [["a", "encoding", "b"], ["encoding"]]


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_fault_of_the_cache_s_own_fails_nobody(
    method: str, server: TestRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, _, _ = small()
    monkeypatch.setattr(small_cache(pipeline, server), method, lambda *_: 1 / 0)
    assert [reply.code for reply in send(pipeline, [{"text": "a"}, {"text": "a"}, {"text": "b"}])] == [200] * 3
    assert len(caplog.records) == 1


# --- once


def test_equal_questions_of_a_batch_are_computed_once(worker: Worker) -> None:
    replies = worker.ask(*[QUESTION] * 20, {"instances": [QUESTION] * 20})
    assert worker.forwards == [3]
    assert len({bare(reply) for reply in replies[:20]}) == 1
    assert len({reply.body for reply in replies}) == 21


def test_equal_questions_of_a_batch_are_computed_once_without_redis_too(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PATIENCE_S", 0.0)
    worker = Worker(tiny_model("bert"), f"unix://{tmp_path}/none.sock")
    assert {reply.headers["x-cache"] for reply in worker.ask(*[QUESTION] * 20)} == {"miss"}
    assert worker.forwards == [3]


def test_500_equal_questions_in_batches_are_computed_once(worker: Worker) -> None:
    for _ in range(500 // 25):
        worker.ask(*[QUESTION] * 25)
    assert worker.forwards == [3]
    assert (worker.cache.hits, worker.cache.misses) == (475, 25)


# --- what a recipe and a request may say


def test_a_version_may_have_none(server: TestRedis, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = worker.quiz.task, worker.quiz.model
    monkeypatch.setenv("REDIS_URL", server.url)
    assert open_cache(task, model, "d") is not None
    for cache, has in ((False, False), (True, True), (CacheSettings(ttl_s=1.0), True)):
        task.settings = msgspec.structs.replace(task.settings, cache=cache)
        assert (open_cache(task, model, "d") is not None) == has
    monkeypatch.setattr(task, "cached", False)
    assert open_cache(task, model, "d") is None
    monkeypatch.undo()
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert open_cache(task, model, "d") is None
    worker.quiz.cache = None
    assert worker.state(QUESTION) is None


def test_no_cache_computes_anew_and_refreshes(server: TestRedis, worker: Worker) -> None:
    worker.ask(QUESTION)
    before = server.client.keys(f"{PREFIX}:*"), server.client.mget(server.client.keys(f"{PREFIX}:*"))
    assert worker.state(QUESTION, cache_control="max-age=5, No-Cache") == "miss"
    worker.link.ask(("PING",))
    assert server.client.keys(f"{PREFIX}:*") == before[0]
    assert server.client.mget(before[0]) != before[1]
    assert worker.forwards == [3, 3]


def test_no_store_leaves_nothing(server: TestRedis, worker: Worker) -> None:
    assert [worker.state(QUESTION, cache_control="no-store") for _ in range(2)] == ["miss", "miss"]
    assert not server.client.keys(f"{PREFIX}:*")


def test_several_instances_are_a_hit_only_if_all_are(worker: Worker) -> None:
    other = {"question": "Who?", "choices": ["a", "b"]}
    worker.ask(QUESTION)
    assert worker.state({"instances": [QUESTION, other]}) == "miss"
    assert worker.state({"instances": [QUESTION, other, {"question": 3}]}) == "hit"


def test_errors_are_not_remembered(server: TestRedis, worker: Worker) -> None:
    worker.broken = True
    assert [reply.code for reply in worker.ask(QUESTION, {"question": 3})] == [500, 422]
    worker.broken = False
    assert worker.state(QUESTION) == "miss"


# --- time


def test_an_answer_expires(server: TestRedis, tiny_model: Callable[[str], Path]) -> None:
    worker = Worker(tiny_model("bert"), server.url, ttl_s=0.3, stale_s=0.0)
    assert [worker.state(QUESTION), worker.state(QUESTION)] == ["miss", "hit"]
    time.sleep(0.4)
    assert not server.client.keys(f"{PREFIX}:*")
    assert worker.state(QUESTION) == "miss"


def test_when_the_model_fails_the_last_known_answer_is_served(
    server: TestRedis, tiny_model: Callable[[str], Path]
) -> None:
    worker = Worker(tiny_model("bert"), server.url, ttl_s=0.2, stale_s=2.0)
    [known] = worker.ask(QUESTION)
    time.sleep(0.3)
    worker.broken = True
    stale, unknown, fresh = (
        worker.ask(QUESTION)[0],
        worker.ask({"question": "New?", "choices": ["a", "b"]})[0],
        worker.ask(QUESTION, cache_control="no-cache")[0],
    )
    assert (stale.code, stale.headers["x-cache"], bare(stale)) == (200, "stale", bare(known))
    assert (unknown.code, fresh.code) == (500, 500)
    time.sleep(2.2)
    assert worker.ask(QUESTION)[0].code == 500


def test_answers_of_one_moment_expire_at_many(server: TestRedis, tiny_model: Callable[[str], Path]) -> None:
    worker = Worker(tiny_model("bert"), server.url, ttl_s=1000.0, stale_s=0.0, jitter=0.5)
    worker.ask(*some_questions(60))
    worker.link.ask(("PING",))
    left = [server.client.pttl(key) / 1000 for key in server.client.keys(f"{PREFIX}:*")]
    assert min(left) >= 490
    assert max(left) <= 1000
    assert max(left) - min(left) > 250


def test_early_refresh_follows_the_paper(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """P(refresh) t seconds before expiry = exp(-t / (cost * beta)): Vattani et al. 2015, XFetch's exponential law."""
    monkeypatch.setattr(random, "random", random.Random(3).random)
    entry = worker.cache._entry(b"/", 100.0, 0.5, None)
    for left_s in (0.0, 0.1, 0.5, 1.0, 2.0):
        drawn = sum(worker.cache.is_due(entry, 100.0 - left_s) for _ in range(20_000)) / 20_000
        assert drawn == pytest.approx(math.exp(-left_s / 0.5), abs=0.02)


def test_a_popular_answer_is_refreshed_before_it_expires(server: TestRedis, tiny_model: Callable[[str], Path]) -> None:
    worker = Worker(tiny_model("bert"), server.url, ttl_s=5.0, jitter=0.0, early_refresh=1e9)
    worker.ask(QUESTION)
    assert worker.state(QUESTION) == "miss"
    worker.broken = True
    assert worker.state(QUESTION) == "hit"  # it has not expired; only its refresh failed


def test_a_clock_that_was_ahead_does_not_make_answers_live_longer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        now = time.time()
        ahead.setattr(time, "time", lambda: now + 1e6)
        worker.ask(QUESTION)
    assert worker.state(QUESTION) == "miss"


# --- purge


def test_a_purged_answer_is_computed_anew(server: TestRedis, worker: Worker) -> None:
    worker.ask(QUESTION)
    server.client.set("marctl:cache-generation:quiz:1.0", b"x")
    assert [worker.state(QUESTION), worker.state(QUESTION)] == ["miss", "hit"]
    server.client.set("marctl:cache-generation:quiz", b"x")
    assert [worker.state(QUESTION), worker.state(QUESTION)] == ["miss", "hit"]


# --- Redis


def damaged(value: bytes) -> Iterator[bytes]:
    """What is no entry, and entries that cannot be this question's."""
    yield b""
    yield b"garbage"
    yield os.urandom(len(value))
    yield value[:-1]
    yield value + b"\0"
    generation, expires, cost_s, (probabilities, truncated) = msgspec.msgpack.decode(value)
    for wrong in ([], probabilities[:-1], [*probabilities, 0.0], [-1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [math.nan] * 3):
        yield msgspec.msgpack.encode([generation, expires, cost_s, [wrong, truncated]])
    yield msgspec.msgpack.encode([generation, "soon", cost_s, [probabilities, truncated]])
    yield msgspec.msgpack.encode([generation, expires, cost_s, [probabilities]])


def test_damaged_values_are_counted_and_overwritten(server: TestRedis, worker: Worker) -> None:
    [known] = worker.ask(QUESTION)
    [key] = server.client.keys(f"{PREFIX}:*")
    broken = list(damaged(server.client.get(key)))
    for value in broken:
        server.client.set(key, value)
        [reply] = worker.ask(QUESTION)
        assert (reply.headers["x-cache"], bare(reply)) == ("miss", bare(known))
        assert worker.state(QUESTION) == "hit"
    assert worker.cache.damaged == len(broken)


def test_a_key_of_another_type_is_counted_as_a_miss(server: TestRedis, worker: Worker) -> None:
    worker.ask(QUESTION)
    [key] = server.client.keys(f"{PREFIX}:*")
    server.client.delete(key)
    server.client.lpush(key, "x")
    assert [worker.state(QUESTION), worker.state(QUESTION)] == ["miss", "hit"]


def test_a_full_redis_is_read_on(server: TestRedis, worker: Worker) -> None:
    worker.ask(QUESTION)
    memory_left(server.client, -(1 << 16))  # buffers that are freed in the meantime leave none, either
    try:
        assert worker.state({"question": "Who?", "choices": ["a", "b"]}) == "miss"
        assert worker.state(QUESTION) == "hit"
        assert worker.cache.totals()["handler_cache_errors_total"] >= 1
        assert worker.cache.asking
    finally:
        server.client.config_set("maxmemory", 0)


def test_answers_go_on_through_all_that_befalls_redis(own_server: TestRedis, tiny_model: Callable[[str], Path]) -> None:
    worker = Worker(tiny_model("bert"), own_server.url)
    worker.ask(QUESTION)

    def good() -> bool:
        return all(reply.code == 200 for reply in worker.ask(QUESTION, {"instances": [QUESTION]}))

    own_server.kill()
    assert all(good() for _ in range(20))
    assert not worker.cache.asking
    own_server.start()
    assert worker.link.wait_available(PATIENCE_S)
    assert good()
    assert worker.state(QUESTION) == "hit"
    with own_server.frozen():
        assert all(good() for _ in range(3))
    assert worker.link.wait_available(PATIENCE_S)
    assert worker.state(QUESTION) == "hit"


# --- another version's last answer


def test_a_worker_serves_the_last_answer_of_another_version(
    server: TestRedis, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("bert")
    failed, standby = Worker(folder, server.url, version="2.0"), Worker(folder, server.url, digest="e")
    [known] = failed.ask(QUESTION)
    failed.link.ask(("PING",))
    wanted = {STALE_HEADER: "1", FAILED_HEADER: "2.0"}
    recalled = standby.ask(QUESTION, **wanted)[0]
    assert (recalled.code, recalled.headers["x-cache"], recalled.headers["x-model-version"]) == (200, "stale", "2.0")
    assert bare(recalled) == bare(known)
    assert json.loads(recalled.body)["model_version"] == "2.0"
    unknown = {"question": "New?", "choices": ["a", "b"]}
    refused = standby.ask(unknown, **wanted)[0]
    assert (refused.code, refused.headers["retry-after"]) == (503, "1")
    assert standby.ask(QUESTION, **wanted | {FAILED_HEADER: "3.0"})[0].code == 503
    assert standby.forwards == []
    assert standby.state(QUESTION, **{FAILED_HEADER: "2.0"}) == "miss"
    standby.quiz.cache = None
    assert standby.ask(QUESTION, **wanted)[0].code == 503


def test_names_cannot_run_into_each_other() -> None:
    assert key_prefix("a", "1.0") != key_prefix("a:1", ".0")
    assert len({key_prefix(m, v) for m in ("a", "a-1", "b") for v in ("1", "1.0", "0")}) == 9
