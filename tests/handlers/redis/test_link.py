"""Against a real Redis: what a worker may rely on, and what it must not notice."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marctl_handlers.redis.link import REPLY_TIMEOUT_S, RedisLink
from tests.redis_servers import SERVERS, TestRedis, memory_left

PATIENCE_S = 10.0
SLACK_S = 0.5
"""On top of a limit, for a machine that is busy with other things."""


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestRedis]:
    started = TestRedis(tmp_path, request.param)
    yield started
    started.stop()


@pytest.fixture
def link(server: TestRedis) -> RedisLink:
    """With more patience than in service, so that a busy machine makes no failure."""
    made = RedisLink(server.url, reply_timeout_s=1.0)
    assert made.wait_available(PATIENCE_S)
    return made


def test_a_reply_per_command_in_one_round_trip(link: RedisLink) -> None:
    assert link.ask(("SET", b"a", b"\x00\xff"), ("MGET", b"a", b"b"), ("INCR", "n")) == [b"OK", [b"\x00\xff", None], 1]


def test_what_was_sent_is_there_for_the_next_question(link: RedisLink) -> None:
    for i in range(100):
        assert link.send(("SET", "last", i), ("INCR", "count"))
        assert link.ask(("MGET", "last", "count")) == [[b"%d" % i, b"%d" % (i + 1)]]


def test_sending_never_waits_for_what_was_sent_before(server: TestRedis, link: RedisLink) -> None:
    assert all(link.send(("INCR", "count")) for _ in range(100))
    assert link.ask(("GET", "count")) == [b"100"]


def test_a_refused_command_harms_neither_the_others_nor_the_link(server: TestRedis, link: RedisLink) -> None:
    assert link.ask(("NO-SUCH-COMMAND",), ("SET", "a", 1)) == [None, b"OK"]
    memory_left(server.client, 0)
    assert link.send(("SET", "b", b"x" * 1000))
    assert link.ask(("MGET", "a", "b")) == [[b"1", None]]
    assert (link.available, link.failures, link.refused) == (True, 0, 2)


def test_without_redis_nothing_is_asked_and_nothing_waits(tmp_path: Path) -> None:
    link = RedisLink(f"unix://{tmp_path}/none.sock")
    began = time.monotonic()
    assert all(link.ask(("GET", "a")) is None and not link.send(("SET", "a", 1)) for _ in range(1000))
    assert time.monotonic() - began < SLACK_S
    assert not link.available


def test_a_frozen_redis_delays_one_call_and_comes_back(server: TestRedis) -> None:
    link = RedisLink(server.url)
    while link.ask(("SET", "a", 1)) is None:
        link.wait_available(PATIENCE_S)
    with server.frozen():
        began = time.monotonic()
        assert [link.ask(("GET", "a")) for _ in range(1000)] == [None] * 1000
        assert time.monotonic() - began < REPLY_TIMEOUT_S + SLACK_S
        assert 1 <= link.failures < 5
    assert link.wait_available(PATIENCE_S)
    link = RedisLink(server.url, reply_timeout_s=1.0)
    assert link.wait_available(PATIENCE_S)
    assert link.ask(("GET", "a")) == [b"1"]


def test_a_slow_redis_delays_one_call_and_is_left_alone(server: TestRedis) -> None:
    with slow_way(server.url) as (url, delay):
        link = RedisLink(url)
        assert link.wait_available(PATIENCE_S)
        delay[0] = 0.05
        began = time.monotonic()
        assert [link.ask(("GET", "a")) for _ in range(1000)] == [None] * 1000
        assert time.monotonic() - began < REPLY_TIMEOUT_S + SLACK_S
        assert not link.wait_available(0.5)
        delay[0] = 0.0
        assert link.wait_available(PATIENCE_S)


@contextmanager
def slow_way(url: str) -> Iterator[tuple[str, list[float]]]:
    """A port before a Redis on a Unix socket, whose answers take as long as the list's one number says, in seconds."""
    delay = [0.0]
    path = url.removeprefix("unix://")

    def carry(source: socket.socket, sink: socket.socket, *, back: bool) -> None:
        try:
            while data := source.recv(65536):
                time.sleep(delay[0] if back else 0)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            behind = socket.socket(socket.AF_UNIX)
            behind.connect(path)
            for source, sink, back in ((client, behind, False), (behind, client, True)):
                threading.Thread(target=carry, args=(source, sink), kwargs={"back": back}, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}", delay
        listener.shutdown(socket.SHUT_RDWR)


def test_a_killed_redis_is_found_again(server: TestRedis, link: RedisLink) -> None:
    server.kill()
    assert link.ask(("GET", "a")) is None
    assert not link.available
    server.start()
    assert link.wait_available(PATIENCE_S)
    assert link.ask(("GET", "a")) == [None]


def test_a_late_answer_is_never_taken_for_another(server: TestRedis) -> None:
    """What came too late for one question must not answer the next one."""
    link = RedisLink(server.url)
    assert link.wait_available(PATIENCE_S)
    server.client.mset({f"key:{i}": i for i in range(200)})
    with server.frozen():
        link.ask(("GET", "key:0"))
    for i in range(1, 200):
        link.wait_available(PATIENCE_S)
        assert link.ask(("GET", f"key:{i}")) in ([b"%d" % i], None)


@pytest.mark.parametrize("junk", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-7\r\n", b"", b"*1000000000\r\n"])
def test_what_is_no_redis_is_not_asked(junk: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                client.sendall(junk)
                client.close()

        threading.Thread(target=babble, daemon=True).start()
        link = RedisLink(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        assert not link.wait_available(0.3)
        assert link.ask(("GET", "a")) is None
        listener.shutdown(socket.SHUT_RDWR)


def test_a_forked_process_makes_its_own_connection(server: TestRedis, link: RedisLink) -> None:
    link.ask(("SET", "who", "parent"))
    child = os.fork()
    if child == 0:
        try:
            link.ask(("GET", "who"))
            good = link.wait_available(PATIENCE_S) and link.ask(("GETSET", "who", "child")) == [b"parent"]
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert link.ask(("GET", "who")) == [b"child"]


def test_a_worker_loads_whatever_redis_url_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert RedisLink.from_environment() is None
    monkeypatch.setenv("REDIS_URL", "localhost")
    assert RedisLink.from_environment() is None
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1")
    monkeypatch.setitem(sys.modules, "redis.connection", None)
    assert RedisLink.from_environment() is None
