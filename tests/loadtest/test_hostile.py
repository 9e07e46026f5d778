"""Hostile traffic for measurements: all of it is sent and counted, and it ends with what it accompanies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest.gateway.hostile import ABANDONED, KNOWN_NAMES, Hostile, attacked, hostile_requests
from tests.live.envoys import until


class Refusing(BaseHTTPRequestHandler):
    """Answers 400 to what it can read, and never reads what is larger than a megabyte."""

    asked: Counter[str]
    lock = threading.Lock()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        with self.lock:
            self.asked[self.path.partition("?")[0]] += 1
        if length.isdecimal() and int(length) <= 1_000_000:
            self.rfile.read(int(length))
        self.send_response(500 if self.headers.get("x-sample") else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, Counter[str]]]:
    Refusing.asked = Counter()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{opened.server_port}", Refusing.asked
        opened.shutdown()


def test_every_kind_goes_to_every_address_and_every_answer_is_counted(server: tuple[str, Counter[str]]) -> None:
    url, asked = server
    kinds = len(hostile_requests())
    with attacked([f"{url}/a", f"{url}/b"], 2 * kinds, 0.2) as attack:
        pass
    assert attack.answers.total() == 2 * kinds
    # A request whose sender hung up reaches the server late or never.
    until(lambda: min(asked["/a"], asked["/b"]) > 0.9 * kinds, missing=lambda: asked)
    assert attack.answers["400"] > 1.8 * kinds
    assert attack.answers[ABANDONED] == 2 * sum(hostile.endless for hostile in hostile_requests())


def test_kinds_that_a_server_fails_on_are_named(server: tuple[str, Counter[str]]) -> None:
    url, _ = server
    with attacked([url], len(hostile_requests()), 0.2) as attack:
        pass
    assert set(attack.failed) == {f"500 header {name}" for name in ("x-sample", "X-SAMPLE", "X-Sample")}
    assert attack.failed.total() == attack.answers["500"]


def test_a_request_is_sent_as_it_stands_with_its_true_length_unless_another_is_given() -> None:
    assert Hostile("x", b"abc", (("a b", "\x00"),)).encode("h", "/p") == (
        b"POST /p HTTP/1.1\r\nHost: h\r\na b: \x00\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert b"Content-Length: 7\r\n" in Hostile("x", b"abc", length="7").encode("h", "/p")
    assert b"Content-Length" not in Hostile("x", b"abc", length="").encode("h", "/p")


@pytest.mark.parametrize("name", KNOWN_NAMES)
def test_every_name_that_a_worker_reads_comes_as_header_field_part_file_and_query(name: str) -> None:
    kinds = {hostile.kind for hostile in hostile_requests()}
    assert {f"{way} {name}" for way in ("header", "form field", "part", "file", "query")} <= kinds


def test_it_ends_when_what_it_accompanies_fails(server: tuple[str, Counter[str]]) -> None:
    url, asked = server
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="broken"), attacked([url], 1000, 600.0):
        raise RuntimeError("broken")
    assert time.monotonic() - started < 60
    assert asked.total() < 1000
