"""Broken, oversized, slow and half-closed connections by the thousand: others are answered meanwhile."""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from loadtest.gateway.constant import constant_server
from marctl.gateway.settings import GatewaySettings
from tests.live.envoys import TestGateway, open_gateway, until

pytestmark = pytest.mark.live
BROKEN, SLOW, HALF_CLOSED = 5_000, 200, 500
BODY_BYTES = 100_000
TIMEOUT_S = 1.5
"""For a whole request; its headers have a third."""
MARGIN_S = 4.0
"""On a machine that does much else."""
WHOLE = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGateway]:
    folder = tmp_path_factory.mktemp("abuse")
    settings = GatewaySettings(body_bytes=BODY_BYTES, request_timeout_s=TIMEOUT_S, idle_timeout_s=TIMEOUT_S)
    with constant_server(folder) as upstream:
        opened = open_gateway(folder / "state", upstream, settings)
        yield opened
        opened.stop()


def connect(gateway: TestGateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@contextmanager
def others_are_answered(gateway: TestGateway) -> Iterator[None]:
    """A well-behaved client asks all the while, and again at the end: every answer is a 200, and none is late."""
    stop, found = threading.Event(), []

    def ask() -> None:
        with requests.Session() as session:
            while not stop.wait(0.01):
                got = session.post(f"{gateway.url}/predict", json={}, timeout=30)
                found.append((got.status_code, got.elapsed.total_seconds()))

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield
    finally:
        stop.set()
        client.join()
    assert gateway.ask().status_code == 200
    assert {code for code, _ in found} == {200}
    assert max(seconds for _, seconds in found) < MARGIN_S


def assert_none_is_left(gateway: TestGateway) -> None:
    until(lambda: gateway.envoy.figure("http.gateway.downstream_cx_active") == 0, timeout_s=TIMEOUT_S + MARGIN_S)


def broken(draw: random.Random) -> bytes:
    """A request that nobody can answer, of some kind."""
    part = bytearray(WHOLE[: draw.randrange(1, len(WHOLE))])
    for _ in range(3):
        part[draw.randrange(len(part))] = draw.randrange(256)
    large = b"x" * draw.choice((1_000, 9_000, 70_000))
    length = draw.choice((b"-1", b"1e9", b"99999999999999999999", b"2, 3", b"0x10", str(BODY_BYTES + 1).encode()))
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\n"
    return draw.choice(
        (
            bytes(part),
            draw.randbytes(draw.randrange(1, 300)),
            head + b"x-large: " + large + b"\r\n\r\n",
            b"GET /" + large + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            head + b"content-length: " + length + b"\r\n\r\n{}",
            head + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            head + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
            head + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"POST /predict HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(60),
            b"\x16\x03\x01" + draw.randbytes(200),
        )
    )


def test_five_thousand_broken_requests_leave_it_answering(gateway: TestGateway) -> None:
    draw = random.Random(1)
    with others_are_answered(gateway):
        for i in range(BROKEN):
            with connect(gateway) as connection, suppress(ConnectionError):
                connection.sendall(broken(draw))
                if i % 3 == 1:
                    connection.shutdown(socket.SHUT_WR)
                elif i % 3 == 2:
                    # Closing sends a reset.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_none_is_left(gateway)


def test_bodies_beyond_the_limit_are_refused_one_by_one(gateway: TestGateway) -> None:
    with others_are_answered(gateway), requests.Session() as session:
        for _ in range(100):
            got = session.post(f"{gateway.url}/predict", data=b"x" * (BODY_BYTES + 1), timeout=30)
            assert (got.status_code, got.json()["error"]) == (413, "too_large")


@pytest.mark.parametrize("whole_headers", [False, True], ids=["headers", "body"])
def test_those_that_send_byte_by_byte_are_ended_in_their_time(gateway: TestGateway, whole_headers: bool) -> None:
    """None of them would end by itself within a minute."""
    begin = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" if whole_headers else b""
    rest = b"x" * 1000 if whole_headers else WHOLE[:-20] + b"\r\nx-slow: " + b"x" * 1000
    with others_are_answered(gateway):
        connections = [connect(gateway) for _ in range(SLOW)]
        began = time.monotonic()
        for connection in connections:
            connection.sendall(begin)
        answers = trickle(connections, rest, began + TIMEOUT_S + MARGIN_S)
    assert len(answers) == SLOW
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
    assert time.monotonic() - began > TIMEOUT_S / 3
    assert_none_is_left(gateway)


def trickle(connections: list[socket.socket], rest: bytes, deadline: float) -> list[bytes]:
    """Send each a byte at a time until the gateway ends it; returns what it said to those that it ended."""
    answers: dict[int, bytes] = {connection.fileno(): b"" for connection in connections}
    done: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        for place in range(len(rest)):
            if len(done) == len(connections) or time.monotonic() > deadline:
                break
            for key in list(selector.get_map().values()):
                with suppress(OSError):
                    key.fileobj.send(rest[place : place + 1])  # type: ignore[union-attr]  # they are sockets
            end = time.monotonic() + 0.1
            while (left := end - time.monotonic()) > 0 and selector.get_map():
                for key, _ in selector.select(left):
                    part = b""
                    with suppress(ConnectionError):
                        part = key.fileobj.recv(4096)  # type: ignore[union-attr]  # as above
                    answers[key.fd] += part
                    if not part:
                        done.append(answers[key.fd])
                        selector.unregister(key.fileobj)
    for connection in connections:
        connection.close()
    return done


def test_connections_that_say_nothing_are_ended_in_their_time(gateway: TestGateway) -> None:
    with others_are_answered(gateway):
        began = time.monotonic()
        connections = [connect(gateway) for _ in range(SLOW)]
        for i, connection in enumerate(connections):
            if i % 2:
                connection.sendall(b"PRI * HT")
        for connection in connections[::2]:
            read_to_the_end(connection)
        assert TIMEOUT_S * 0.3 < time.monotonic() - began < TIMEOUT_S / 3 + MARGIN_S
        for connection in connections[1::2]:
            read_to_the_end(connection)
        assert TIMEOUT_S * 0.9 < time.monotonic() - began < TIMEOUT_S + MARGIN_S
    assert_none_is_left(gateway)


def read_to_the_end(connection: socket.socket) -> None:
    """Raises TimeoutError if the gateway does not end it."""
    connection.settimeout(TIMEOUT_S + MARGIN_S)
    with connection, suppress(ConnectionError):
        while connection.recv(4096):
            pass


@pytest.mark.parametrize("sent", [WHOLE, WHOLE[:-1], WHOLE[:-10], b""], ids=["whole", "body", "headers", "nothing"])
def test_half_closed_connections_are_ended_and_nothing_of_them_stays(gateway: TestGateway, sent: bytes) -> None:
    with others_are_answered(gateway):
        connections = [connect(gateway) for _ in range(HALF_CLOSED)]
        for connection in connections:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        for connection in connections:
            read_to_the_end(connection)
    assert_none_is_left(gateway)


def test_those_that_never_read_their_answers_hold_nothing_for_ever(gateway: TestGateway, tmp_path: Path) -> None:
    with others_are_answered(gateway):
        connections = [connect(gateway) for _ in range(SLOW)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            with suppress(OSError):
                connection.setblocking(False)
                connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
        time.sleep(TIMEOUT_S)
    for connection in connections:
        connection.close()
    assert_none_is_left(gateway)
