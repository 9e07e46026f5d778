"""Hostile traffic for measurements: all of it is sent, and it ends with what it accompanies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest.gateway.hostile import attacked, hostile_bodies


class Refusing(BaseHTTPRequestHandler):
    """Answers 400, and 413 with the connection closed to what is larger than a megabyte."""

    asked: Counter[str]

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.asked[self.path] += 1
        if length <= 1_000_000:
            self.rfile.read(length)
        self.send_response(413 if length > 1_000_000 else 400)
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
    kinds = len(hostile_bodies())
    with attacked([f"{url}/a", f"{url}/b"], 2 * kinds, 0.2) as answered:
        pass
    assert asked == {"/a": kinds, "/b": kinds}
    assert answered["400"] == 2 * (kinds - 1)
    assert answered["413"] + answered["closed"] == 2


def test_it_ends_when_what_it_accompanies_fails(server: tuple[str, Counter[str]]) -> None:
    url, asked = server
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="broken"), attacked([url], 1000, 600.0):
        raise RuntimeError("broken")
    assert time.monotonic() - started < 60
    assert asked.total() < 1000
