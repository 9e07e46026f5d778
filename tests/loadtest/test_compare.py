"""The comparison's table, and what the servers are asked."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.compare.contenders import CONTENDERS, first_tensor, tensor
from loadtest.compare.harness import Measured, Reference, WrongAnswer, check_answers
from loadtest.compare.table import Ceiling, Entry, markdown

OURS = next(contender for contender in CONTENDERS if contender.name == "ours")


def measured(rps: float, errors: int = 0) -> Measured:
    return Measured(rps, 10, 20, 1.5, errors, 5, 0.01, 0.001, 0.03)


def test_the_table_has_medians_in_order_and_every_failure_with_its_reason() -> None:
    entries = [
        Entry("a", "slow", [measured(10), measured(30, errors=2), measured(20)]),
        Entry("b", "fast", [measured(50)]),
        Entry("c", "broken", failures=["StartFailed: no | port"]),
    ]
    rows = markdown(entries, Ceiling([100.0], [1.0], [8.0])).splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["100", "50", "20", "failed: StartFailed: no / port"]
    assert rows[2].split("|")[5].strip() == "2"
    assert {row.count("|") for row in rows} == {9}


def test_a_question_as_a_tensor_comes_back_whole() -> None:
    question = '{"question": "ä?", "choices": ["\\"a\\"", "b"]}'
    sent = json.loads(tensor("question", [1])(question.encode()))["inputs"][0]
    assert (sent["shape"], sent["datatype"], sent["data"]) == ([1], "BYTES", [question])
    answer = {"outputs": [{"data": [json.dumps({"prediction": 1})]}]}
    assert first_tensor(json.dumps(answer).encode()) == {"prediction": 1}


@pytest.fixture
def port() -> Iterator[int]:
    """A server that answers 0.25 and 0.75, whatever it is asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"prediction": 1, "probabilities": [0.25, 0.75]}')

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_answers_are_held_to_the_reference(port: int) -> None:
    body = b'{"question": "a?", "choices": ["a", "b"]}'
    assert check_answers(OURS, port, Reference([body], [[0.26, 0.74]])) == [pytest.approx(0.01)]
    with pytest.raises(WrongAnswer, match=r"0\.75.*expected"):
        check_answers(OURS, port, Reference([body], [[0.75, 0.25]]))
