"""A cheap load generator: keep-alive HTTP/1.1 connections, one process, one thread, no dependency in its loop.

    python -m loadtest.generator http://127.0.0.1:8000/predictions/mcqa --rate 500 --seconds 60        open loop
    python -m loadtest.generator http://127.0.0.1:8000/predictions/mcqa --connections 64 --seconds 60  closed loop

Open loop: requests have times at which they are meant to go out (a fixed rate with Poisson or even gaps), and a
request's latency counts from that time, whether or not the generator or the server was ready for it. A closed loop, in
which each connection waits for its answer before it asks again, slows down with the server and so hides its queue.

Requests are encoded before the run; an answer is checked by its status and a marker in its body, and every so many are
kept whole for a full check afterwards.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.outcomes import NO_ANSWER, WRONG_BODY, Outcomes
from loadtest.questions import Stream, bodies
from loadtest.shapes import SHAPES, even_times, poisson_times

TIMEOUT_S = 60.0
RECEIVE_BYTES = 1 << 16
KEEP_EVERY = 500


@dataclass(frozen=True)
class Target:
    """Where requests go; `marker` must be in every good answer."""

    host: str
    port: int
    path: str
    marker: bytes = b'"prediction"'
    headers: tuple[str, ...] = ()

    @classmethod
    def of(cls, url: str, marker: bytes = b'"prediction"', headers: tuple[str, ...] = ()) -> Target:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"expected http://HOST:PORT/PATH, got {url!r}")
        return cls(parts.hostname, parts.port or 80, parts.path or "/", marker, headers)

    def head(self) -> bytes:
        """All of a request but its length and body."""
        lines = [f"POST {self.path} HTTP/1.1", f"host: {self.host}:{self.port}", "content-type: application/json"]
        return ("\r\n".join([*lines, *self.headers]) + "\r\ncontent-length: ").encode()


class Connection:
    """One socket; at most one request under way."""

    __slots__ = ("body", "due", "received", "sent", "socket")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.due = self.sent = 0.0
        self.body = self.received = b""


class Generator:
    """Sends a stream's bodies over connections of its own."""

    def __init__(self, target: Target, stream: Stream, keep_every: int = KEEP_EVERY) -> None:
        self.target = target
        self.stream = stream
        self.keep_every = keep_every
        self.head = target.head()
        self.selector = selectors.DefaultSelector()
        self.busy: set[Connection] = set()
        self.outcomes = Outcomes()
        self.start = self.swept = 0.0
        self.cpu = 0.0

    def closed(self, n_connections: int, seconds: float) -> Outcomes:
        """Each connection asks again as soon as it has its answer."""
        self._begin()
        for connection in [Connection() for _ in range(n_connections)]:
            self._send(connection, self._now())
        while self._now() < seconds:
            for connection in self._finished(0.1):
                self._send(connection, self._now())
        return self._end()

    def open(self, times: Iterator[float], most_connections: int = 1024) -> Outcomes:
        """A request at each of these times (seconds from the start). One that finds no free connection waits."""
        self._begin()
        idle: list[Connection] = []
        opened = 0
        waiting: deque[float] = deque()
        due = next(times, None)
        while due is not None or waiting:
            now = self._now()
            while due is not None and due <= now:
                waiting.append(due)
                due = next(times, None)
            while waiting and (idle or opened < most_connections):
                opened += not idle
                self._send(idle.pop() if idle else Connection(), waiting.popleft())
            wait = 0.1 if due is None else min(max(due - self._now(), 0.0), 0.1)
            idle += self._finished(wait)
        return self._end()

    def _begin(self) -> None:
        self.outcomes.started = time.time()
        self.start = time.perf_counter()
        self.cpu = time.process_time()

    def _end(self) -> Outcomes:
        """Wait for what is under way; none of it is left out."""
        while self.busy:
            self._finished(0.1)
        self.outcomes.seconds = self._now()
        self.outcomes.cpu_seconds = time.process_time() - self.cpu
        for key in list(self.selector.get_map().values()):
            self._close(key.data)
        self.selector.close()
        return self.outcomes

    def _now(self) -> float:
        return time.perf_counter() - self.start

    def _send(self, connection: Connection, due: float) -> None:
        body = next(self.stream)
        connection.body, connection.due, connection.sent, connection.received = body, due, self._now(), b""
        self.busy.add(connection)
        try:
            if connection.socket is None:
                connection.socket = socket.create_connection((self.target.host, self.target.port), TIMEOUT_S)
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.socket.sendall(b"%s%d\r\n\r\n%s" % (self.head, len(body), body))
        except OSError:
            self._close(connection)

    def _finished(self, wait_s: float) -> list[Connection]:
        """Connections whose request was answered or has failed by now; waits up to `wait_s` for the first."""
        finished = []
        for key, _ in self.selector.select(wait_s):
            connection: Connection = key.data
            if self._receive(connection):
                finished.append(connection)
        now = self._now()
        if now >= self.swept + 1.0:
            self.swept = now
            for connection in [c for c in self.busy if c.socket is None or now - c.sent > TIMEOUT_S]:
                self._close(connection)
                self._record(connection, NO_ANSWER)
                finished.append(connection)
        return finished

    def _receive(self, connection: Connection) -> bool:
        """Whether the request is over."""
        assert connection.socket is not None
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            if connection not in self.busy:
                return False  # an idle connection that the server closed
            self._record(connection, NO_ANSWER)
            return True
        connection.received = data = connection.received + data
        whole = answer_length(data)
        if whole is None or len(data) < whole:
            return False
        code = int(data[9:12])
        # An answer in chunks may hold the marker in pieces; putting it together costs more than looking.
        if code == 200 and self.target.marker not in data and self.target.marker not in body_of(data):
            code = WRONG_BODY
        if len(self.outcomes.codes) % self.keep_every == 0:
            self.outcomes.kept.append((connection.body, body_of(data)))
        self._record(connection, code)
        if b"onnection: close" in data:
            self._close(connection)
        return True

    def _record(self, connection: Connection, code: int) -> None:
        self.busy.discard(connection)
        self.outcomes.add(connection.due, self._now(), code)

    def _close(self, connection: Connection) -> None:
        if connection.socket is not None:
            self.selector.unregister(connection.socket)
            connection.socket.close()
            connection.socket = None


def answer_length(data: bytes) -> int | None:
    """Bytes of the whole answer; None while that is unknown."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end].lower()
    at = head.find(b"content-length:")
    if at >= 0:
        stop = head.find(b"\r\n", at)
        return end + 4 + int(head[at + 15 : stop if stop > 0 else end])
    if b"transfer-encoding: chunked" in head:
        return len(data) if data.endswith(b"\r\n0\r\n\r\n") else None
    return end + 4


def body_of(data: bytes) -> bytes:
    """An answer's body; chunks are put together."""
    head, _, body = data.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        n_bytes = int(size, 16)
        whole, body = whole + body[:n_bytes], body[n_bytes + 2 :]
        if n_bytes == 0:
            break
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description="Load one URL with distinct questions; one JSON line of figures.")
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--even", action="store_true", help="open loop: equal gaps instead of a Poisson process")
    parser.add_argument("--shape", choices=SHAPES, default="steady", help="open loop: of the rate over time")
    parser.add_argument("--connections", type=int, default=64, help="closed loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=Path, metavar="FILE", help="JSONL, in place of made questions")
    parser.add_argument("--repeats", type=float, default=0.0, metavar="SHARE", help="of requests that repeat one")
    parser.add_argument("--outcomes", type=Path, metavar="FILE", help="write every second's figures as JSON")
    parser.add_argument("--ready", type=int, default=50_000, help="requests encoded before the start")
    asked = parser.parse_args()
    stream = bodies(asked.seed, asked.questions, asked.repeats, asked.ready)
    generator = Generator(Target.of(asked.url), stream)
    if asked.rate:
        make = even_times if asked.even else poisson_times
        outcomes = generator.open(make(asked.rate, asked.seconds, asked.shape))
    else:
        outcomes = generator.closed(asked.connections, asked.seconds)
    found = outcomes.summary()
    if asked.outcomes:
        outcomes.write(asked.outcomes)
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
