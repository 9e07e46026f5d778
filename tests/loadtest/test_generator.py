"""The generator against a real HTTP server whose answers and delays are known."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import pytest

from loadtest.generator import Generator, Target
from loadtest.outcomes import Outcomes
from loadtest.questions import bodies

STALL_S = 0.5


class Server(ThreadingHTTPServer):
    """Answers by its `plan`: (status, body, seconds to wait, close or drop the connection)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, plan: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan = plan
        self.numbers = count()
        self.lock = threading.Lock()
        self.seen: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: two would wait for each other (Nagle's algorithm)
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.seen.append(body)
            code, answer, wait_s, ending = self.server.plan(next(self.server.numbers))
        time.sleep(wait_s)
        if ending == "drop":
            self.close_connection = True
            return
        self.send_response(code)
        if ending == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (answer[:5], answer[5:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(answer)))
        if ending == "close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(plan: Any) -> tuple[Server, Target]:
        server = Server(plan)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server, Target.of(f"http://127.0.0.1:{server.server_port}/predict")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


GOOD = (200, b'{"prediction": 1}', 0.0, "")


def codes(outcomes: Outcomes) -> dict[str, int]:
    found: dict[str, int] = outcomes.summary()["codes"]
    return found


def test_every_request_is_counted_once_and_sent_whole(serve: Any) -> None:
    server, target = serve(lambda i: GOOD)
    outcomes = Generator(target, bodies(seed=1)).closed(4, 0.5)
    assert codes(outcomes) == {"200": len(server.seen)}
    assert len(set(server.seen)) == len(server.seen) > 20
    assert all(json.loads(body)["choices"] for body in server.seen)


def test_failures_of_every_kind_are_told_apart(serve: Any) -> None:
    plans = [(500, b"{}", 0, ""), (200, b"{}", 0, ""), (0, b"", 0, "drop"), (200, b'{"prediction": 1}', 0, "close")]
    plans.append((200, b'{"prediction": 1}', 0, "chunked"))
    _, target = serve(lambda i: plans[i % 5])
    found = codes(Generator(target, bodies()).open(iter([i / 100 for i in range(50)])))
    assert found == {"200": 20, "500": 10, "wrong body": 10, "no answer": 10}


def test_open_loop_counts_the_wait_of_requests_that_a_stalled_server_holds_up(serve: Any) -> None:
    """One connection, one stall: every request that was due meanwhile has waited for the rest of it."""
    _, target = serve(lambda i: (200, b'{"prediction": 1}', STALL_S if i == 10 else 0.0, ""))
    outcomes = Generator(target, bodies()).open(iter([i / 100 for i in range(100)]), most_connections=1)
    late = [done - due for due, done in zip(outcomes.due, outcomes.done, strict=True) if done - due > STALL_S / 5]
    assert len(late) >= 0.7 * STALL_S * 100
    assert max(late) >= STALL_S


def test_open_loop_keeps_its_rate_whatever_the_server_takes(serve: Any) -> None:
    _, target = serve(lambda i: (200, b'{"prediction": 1}', 0.2, ""))
    outcomes = Generator(target, bodies()).open(iter([i / 100 for i in range(100)]))
    assert len(outcomes.codes) == 100
    assert outcomes.seconds < 2.5  # one after the other would take 20 s


def test_some_answers_are_kept_beside_their_requests(serve: Any) -> None:
    server, target = serve(lambda i: (200, b'{"prediction": %d}' % i, 0.0, ""))
    outcomes = Generator(target, bodies(), keep_every=10).closed(1, 0.3)
    assert len(outcomes.kept) >= 2
    for sent, answer in outcomes.kept:
        assert json.loads(answer)["prediction"] == server.seen.index(sent)


def test_nobody_listening_is_an_error_not_a_crash() -> None:
    outcomes = Generator(Target.of("http://127.0.0.1:9/x"), bodies()).closed(2, 1.2)
    assert set(codes(outcomes)) == {"no answer"}
