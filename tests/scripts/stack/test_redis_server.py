from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from marctl.core.process import is_alive
from marctl.stack import redis_server
from marctl.stack.redis_server import CACHE, FEATURES, RedisFailed, connect
from marctl.stack.state import Redis, State
from marctl_handlers.redis.cache import PREFIX
from tests.redis_servers import OLDEST, SERVERS, program_of


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / 'a "state" folder')
    state.create()
    return state


@pytest.fixture
def server(state: State, tmp_path: Path) -> Iterator[Redis]:
    started = redis_server.start(state, tmp_path)
    yield started
    redis_server.stop(state, started)


def test_an_orderly_stop_keeps_the_data(state: State, server: Redis, tmp_path: Path) -> None:
    connect(server.url).set("answer", "42")
    redis_server.stop(state, server)
    assert redis_server.find(state, server) is None
    again = redis_server.start(state, tmp_path)
    assert connect(again.url).get("answer") == b"42"
    redis_server.stop(state, again)


def test_after_a_crash_saved_answers_are_gone_and_the_saved_log_is_not(state: State, tmp_path: Path) -> None:
    """Answers that were purged since the save would be served again."""
    saved = redis_server.start(state, tmp_path)
    answer = f"{PREFIX}:mcqa:1.0:key"
    connect(saved.url).mset({answer: "old", "setting": "kept"})
    connect(saved.url).xadd("log", {"record": "kept"})
    redis_server.stop(state, saved)
    crashed = redis_server.start(state, tmp_path)
    assert connect(crashed.url).unlink(answer) == 1
    psutil.Process(crashed.pid).kill()
    for _ in range(2):
        again = redis_server.start(state, tmp_path)
        client = connect(again.url)
        assert (client.get(answer), client.get("setting"), client.xlen("log")) == (None, b"kept", 1)
        client.set(answer, "new")
        psutil.Process(again.pid).kill()


def test_nobody_else_reaches_it(server: Redis) -> None:
    process = psutil.Process(server.pid)
    assert not process.net_connections("inet")
    assert Path(server.url.removeprefix("unix://")).stat().st_mode & 0o077 == 0


def test_full_memory_takes_cached_answers_and_spares_the_log(server: Redis) -> None:
    client = connect(server.url)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 500_000)
    client.xadd("log", {"record": "kept"})
    for i in range(100):
        client.set(f"answer:{i}", b"x" * 10_000, ex=60)
    assert client.info("stats")["evicted_keys"] > 0
    assert client.xlen("log") == 1


def test_a_frozen_one_is_stopped_without_its_data(state: State, server: Redis) -> None:
    process = psutil.Process(server.pid)
    process.send_signal(signal.SIGSTOP)
    try:
        redis_server.SAVE_TIMEOUT_S, before = 0.5, redis_server.SAVE_TIMEOUT_S
        redis_server.stop(state, server)
    finally:
        redis_server.SAVE_TIMEOUT_S = before
    assert not is_alive(process)


def test_what_a_killed_start_left_is_removed_by_the_next(state: State, server: Redis, tmp_path: Path) -> None:
    again = redis_server.start(state, tmp_path)
    assert redis_server.find(state, server) is None
    redis_server.stop(state, again)


def test_damaged_data_is_named_with_its_cure(state: State, tmp_path: Path) -> None:
    redis_server.folder(state).mkdir()
    (redis_server.folder(state) / redis_server.DUMP).write_bytes(b"REDIS0009 no more")
    with pytest.raises(RedisFailed, match=r"Redis ended while starting(?s:.*)remove .*dump\.rdb"):
        redis_server.start(state, tmp_path)


@pytest.mark.parametrize("name", SERVERS)
def test_features_survive_a_stop_and_a_crash(state: State, tmp_path: Path, name: str) -> None:
    """What was written a second before the crash, and more."""
    for customer in (1, 2):
        store = redis_server.start(state, tmp_path, program_of(name), FEATURES)
        connect(store.url).hset(f"customer:{customer}", "income", "1200")
        if customer == 1:
            redis_server.stop(state, store, FEATURES)
        else:
            time.sleep(2)
            psutil.Process(store.pid).kill()
    store = redis_server.start(state, tmp_path, program_of(name), FEATURES)
    assert [connect(store.url).hget(f"customer:{i}", "income") for i in (1, 2)] == [b"1200", b"1200"]
    redis_server.stop(state, store, FEATURES)


def test_the_cache_never_evicts_a_feature(state: State, server: Redis, tmp_path: Path) -> None:
    """They stand in a server of their own, which refuses what it has no room for, and says so."""
    store = redis_server.start(state, tmp_path, instance=FEATURES)
    client = connect(store.url)
    client.hset("customer:1", "income", "1200")
    client.expire("customer:1", 60)
    client.config_set("maxmemory", client.info("memory")["used_memory"])
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.hset("customer:2", "income", "x" * 1_000_000)
    assert client.hget("customer:1", "income") == b"1200"
    redis_server.stop(state, store, FEATURES)
    assert redis_server.answers(server.url)


def test_redis_url_is_taken_and_left_alone(state: State, server: Redis, tmp_path: Path) -> None:
    given = redis_server.provide(CACHE, state, tmp_path, {**os.environ, "REDIS_URL": server.url})
    assert given == Redis(server.url)
    environ = {"REDIS_URL": server.url, "FEATURES_REDIS_URL": "unix:///other"}
    assert redis_server.provide(FEATURES, state, tmp_path, environ) == Redis("unix:///other")
    assert redis_server.provide(FEATURES, state, tmp_path, {"REDIS_URL": server.url}) == given
    redis_server.stop(State(tmp_path / "other"), given)
    assert redis_server.answers(server.url)


def test_a_password_is_never_shown() -> None:
    assert redis_server.shown("redis://:secret@host:6379/0") == "redis://***@host:6379/0"
    assert redis_server.shown("unix:///tmp/redis.sock") == "unix:///tmp/redis.sock"


def test_a_wrong_url_is_told(tmp_path: Path) -> None:
    with pytest.raises(redis_server.UserError, match="'localhost' is not a Redis URL"):
        redis_server.answers("localhost")


def test_an_absent_one_does_not_answer(tmp_path: Path) -> None:
    assert not redis_server.answers(f"unix://{tmp_path}/none.sock")
    with pytest.raises(redis.ConnectionError):
        connect(f"unix://{tmp_path}/none.sock").ping()


def test_data_that_redis_6_2_saved_is_loaded(state: State, tmp_path: Path) -> None:
    """Of a stack that was stopped before it was upgraded."""
    older = redis_server.start(state, tmp_path, program_of(OLDEST))
    connect(older.url).xadd("log", {"record": "kept"})
    redis_server.stop(state, older)
    upgraded = redis_server.start(state, tmp_path)
    try:
        assert connect(upgraded.url).info("server")["server_name"] == "valkey"
        assert connect(upgraded.url).xlen("log") == 1
    finally:
        redis_server.stop(state, upgraded)
