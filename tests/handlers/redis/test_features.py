"""A worker whose requests name entities, on a real Redis: what it answers, and what it survives."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marctl_handlers.core.errors import HandlerError
from marctl_handlers.core.messages import Model, Reply, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.features import Features, Specification, specification_of
from marctl_handlers.redis.cache import open_cache
from marctl_handlers.redis.features import REPLY_TIMEOUT_S, Store, open_features
from marctl_handlers.redis.link import FEATURES_URL_VARIABLE, URL_VARIABLE, RedisLink
from tests.handlers.core.small import ListLog
from tests.handlers.features.stored_rows import FRESHNESS_S, specification
from tests.redis_servers import TestRedis, memory_left

PATIENCE_S = 10.0


class Question(msgspec.Struct, frozen=True):
    features: dict[str, float | bool | str | None] = {}
    entity: dict[str, int | str] = {}


class Row(msgspec.Struct, frozen=True):
    values: dict[str, Any]
    imputed: list[str]


class Rows(Task[Question, Row]):
    """Answers what its model would be given. `asked` counts the rows that it computed."""

    asked = 0

    def __init__(self, features: Specification) -> None:
        super().__init__(Settings(task="rows"))
        self._features = Features(features)

    def load(self, folder: Path) -> None:
        pass

    @property
    def stored_features(self) -> Specification:
        return self._features.specification

    def complete(self, questions: Sequence[Question]) -> list[Question | HandlerError]:
        assert self.store is not None
        rows = self.store.complete([(question.features, question.entity) for question in questions])
        return [
            row if isinstance(row, HandlerError) else msgspec.structs.replace(question, features=dict(row))
            for question, row in zip(questions, rows, strict=True)
        ]

    def predict(self, questions: Sequence[Question], deadline: float) -> list[Row]:
        self.asked += len(questions)
        resolved = self._features.resolve([question.features for question in questions])
        assert not resolved.faults
        imputed = resolved.names(resolved.imputed, self._features.features)
        return [Row(self._features.shown(resolved, i), imputed[i]) for i in range(len(questions))]


class Worker:
    """A version that looks up its features."""

    def __init__(self, url: str, features: Specification | None = None) -> None:
        self.link = RedisLink(url, REPLY_TIMEOUT_S)
        assert self.link.wait_available(PATIENCE_S)
        self.task = Rows(features or specification())
        self.task.store = self.store = Store(self.task.stored_features, self.link)
        self.pipeline = Pipeline(self.task, Model("rows", "1.0"))

    def ask(self, *questions: dict[str, Any]) -> list[Reply]:
        return self.pipeline.answer([Request(msgspec.json.encode(q), f"r{i}") for i, q in enumerate(questions)])

    def rows(self, *questions: dict[str, Any]) -> list[Any]:
        return [msgspec.json.decode(reply.body) for reply in self.ask(*questions)]

    def count(self, name: str) -> int:
        return self.pipeline.totals()[f"handler_features_{name}_total"]


def question(customer: int | None = None, shop: str | None = None, **features: Any) -> dict[str, Any]:
    entity = {name: value for name, value in (("customer", customer), ("shop", shop)) if value is not None}
    return {"entity": entity, "features": {"amount": 9.5, **features}}


@pytest.fixture
def server(redis_server: TestRedis) -> TestRedis:
    redis_server.client.flushall()
    redis_server.client.hset(
        "customer:1", mapping={"income": "2500.5", "home": "owner", "children": 3, "@time": time.time(), "other": "x"}
    )
    redis_server.client.hset("shop:a-1", mapping={"open": "true"})
    redis_server.forget_commands()
    return redis_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[TestRedis]:
    """For tests that break it."""
    started = TestRedis(tmp_path)
    yield started
    started.stop()


def test_an_entity_stands_for_its_features(server: TestRedis) -> None:
    """Those of several entities together; the rest comes with the request, or by the specification's rule."""
    worker = Worker(server.url)
    both, one, none = worker.rows(question(1, "a-1"), question(1), question())
    assert both["values"] == {"income": 2500.5, "home": "owner", "children": 3, "open": True, "amount": 9.5}
    assert both["imputed"] == []
    assert one["imputed"] == ["open"]
    assert none["imputed"] == ["income", "home", "children", "open"]


def test_a_batch_costs_one_round_trip_and_asks_for_an_entity_once(server: TestRedis) -> None:
    worker = Worker(server.url)
    calls: list[int] = []
    ask = worker.link.ask_packed
    worker.link.ask_packed = lambda packed, n: calls.append(n) or ask(packed, n)  # type: ignore[method-assign,func-returns-value]
    rows = worker.rows(*[question(1), question(1, "a-1"), question(2)] * 10)
    assert [row["values"]["income"] for row in rows] == [2500.5, 2500.5, 1000.0] * 10
    assert calls == [3]
    assert server.commands()["hmget"] == 3
    worker.rows(question(), question())
    assert calls == [3]


def test_values_of_the_request_go_first_and_null_is_none(server: TestRedis) -> None:
    given, null = Worker(server.url).rows(question(1, income=1), question(1, income=None))
    assert given["values"]["income"] == 1
    assert null["values"]["income"] == 2500.5


def test_two_entities_may_have_one_key(server: TestRedis) -> None:
    """A customer who pays herself."""
    both = [
        {"name": name, "type": "number", "default": 0.0, "entity": {"name": who, "key": f"customer:{{{who}}}"}}
        for name, who in (("income", "sender"), ("children", "receiver"))
    ]
    worker = Worker(server.url, specification_of(both))
    one, other = worker.rows({"entity": {"sender": 1, "receiver": 1}}, {"entity": {"sender": 1, "receiver": 2}})
    assert one["values"] == {"income": 2500.5, "children": 3.0}
    assert other["values"] == {"income": 2500.5, "children": 0.0}


def test_an_unknown_entity_gets_stand_ins_which_are_marked_and_counted(server: TestRedis) -> None:
    worker = Worker(server.url)
    (row,) = worker.rows(question(404, "none"))
    assert row["values"]["income"] == 1000
    assert row["imputed"] == ["income", "home", "children", "open"]
    assert (worker.count("lookups"), worker.count("missing"), worker.count("unanswered")) == (2, 4, 0)


def test_old_and_broken_values_get_stand_ins_and_are_counted(server: TestRedis) -> None:
    worker = Worker(server.url)
    server.client.hset("customer:2", mapping={"income": 5, "children": "many", "@time": time.time() - FRESHNESS_S - 5})
    (row,) = worker.rows(question(2))
    assert row["imputed"] == ["income", "home", "children", "open"]
    assert (worker.count("stale"), worker.count("invalid"), worker.count("missing")) == (1, 1, 1)


def test_a_feature_without_stand_in_is_asked_for(server: TestRedis) -> None:
    """And harms no other request of the batch."""
    worker = Worker(server.url, specification(missing="refuse", default=None))
    lacking, given, stored = worker.ask(question(404), question(404, income=7), question(1))
    assert lacking.code == 422
    assert b"customer:404 has no usable income in the feature store" in lacking.body
    assert b"$.features.income" in lacking.body
    assert [given.code, stored.code] == [200, 200]


def test_a_key_of_another_kind_harms_its_own_request_alone(server: TestRedis) -> None:
    server.client.set("customer:7", "text")
    worker = Worker(server.url)
    other, good = worker.rows(question(7), question(1))
    assert other["imputed"] == ["income", "home", "children", "open"]
    assert good["imputed"] == ["open"]
    assert worker.count("unanswered") == 1


def test_more_entities_than_one_round_trip_takes(server: TestRedis) -> None:
    for i in range(300):
        server.client.hset(f"customer:{i}", mapping={"children": i})
    rows = Worker(server.url).rows(*[question(i) for i in range(300)])
    assert [row["values"]["children"] for row in rows] == list(range(300))


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_without_redis_answers_go_on_with_stand_ins_in_time(own_server: TestRedis, how: str) -> None:
    own_server.client.hset("customer:1", mapping={"income": "2500.5", "@time": time.time()})
    worker = Worker(own_server.url)
    assert worker.rows(question(1))[0]["values"]["income"] == 2500.5
    if how == "killed":
        own_server.kill()
    with own_server.frozen() if how == "frozen" else nullcontext():
        began = time.monotonic()
        rows = [worker.rows(question(1), question(2))[0] for _ in range(20)]
        took_s = time.monotonic() - began
    assert [row["values"]["income"] for row in rows] == [1000] * 20
    assert all("income" in row["imputed"] for row in rows)
    assert took_s < 20 * REPLY_TIMEOUT_S / 2  # the first one waited, not each
    assert worker.count("unanswered") == 40
    if how == "killed":
        own_server.start()
    assert worker.link.wait_available(PATIENCE_S)
    if how == "frozen":
        assert worker.rows(question(1))[0]["values"]["income"] == 2500.5


def test_without_redis_a_feature_without_stand_in_is_no_fault_of_the_client(own_server: TestRedis) -> None:
    worker = Worker(own_server.url, specification(missing="refuse", default=None))
    own_server.kill()
    worker.ask(question(1))
    away, given = worker.ask(question(1), question(1, income=7))
    assert away.code == 503
    assert b"the feature store does not answer" in away.body
    assert given.code == 200


def test_full_memory_keeps_features_readable(own_server: TestRedis) -> None:
    own_server.client.hset("customer:1", mapping={"children": 3})
    memory_left(own_server.client, 0)
    assert Worker(own_server.url).rows(question(1))[0]["values"]["children"] == 3


def test_a_cached_answer_never_rests_on_older_features(server: TestRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, server.url)
    worker = Worker(server.url)
    worker.pipeline.cache = cache = open_cache(worker.task, worker.pipeline.model, "digest")
    assert cache is not None
    assert cache._link.wait_available(PATIENCE_S)
    first, again = (worker.rows(question(1))[0] for _ in range(2))
    assert first["values"] == again["values"]
    assert (worker.task.asked, cache.hits) == (1, 1)
    server.client.hset("customer:1", "income", "7")
    assert worker.rows(question(1))[0]["values"]["income"] == 7
    server.client.hset("customer:1", "@time", "0")
    assert "income" in worker.rows(question(1))[0]["imputed"]
    assert (worker.task.asked, cache.hits) == (3, 1)


def test_the_log_is_told_the_entity_and_the_values_that_were_used(server: TestRedis) -> None:
    worker = Worker(server.url)
    worker.pipeline.log = log = ListLog()
    worker.rows(question(1, amount=3))
    [record] = log.records
    assert record.question.entity == {"customer": 1}
    assert record.question.features == {"income": 2500.5, "home": "owner", "children": 3, "amount": 3}


def test_features_stand_where_the_environment_says(server: TestRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Rows(specification())
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(FEATURES_URL_VARIABLE, raising=False)
    assert open_features(task) is None
    for variable in (URL_VARIABLE, FEATURES_URL_VARIABLE):
        monkeypatch.setenv(variable, server.url)
        task.store = open_features(task)
        monkeypatch.setenv(variable, "unix:///nowhere")
        assert task.store is not None
        rows = Pipeline(task, Model("rows", "1.0")).predict([Question({"amount": 1}, {"customer": 1})])
        assert rows[0].imputed == ["open"]  # type: ignore[union-attr]
