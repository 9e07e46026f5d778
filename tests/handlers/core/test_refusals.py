"""Whatever a client sends, it gets its own plain answer, and its neighbours get theirs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from tests.handlers.loading import load

GOOD = b'{"question": "Why?", "choices": ["a knife", "a cloud"]}'
DEEP = b'{"question": ' + b"[" * 100_000


@pytest.fixture(scope="module")
def quiz(tiny_model: Callable[[str], Path]) -> Pipeline:
    return load(tiny_model("bert"), max_instances=3, max_request_tokens=150)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (None, 400, "got a form or none"),
        (b"", 400, "empty"),
        (b"hello", 400, "not JSON"),
        (b"NaN", 400, "not JSON"),
        (b'{"question": NaN, "choices": ["a", "b"]}', 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"question": "\xff", "choices": ["a", "b"]}', 400, "UTF-8"),
        (b'{"question": "\\ud800", "choices": ["a", "b"]}', 400, "not JSON"),
        (b'{"question": "\\udc00", "choices": ["a", "b"]}', 400, "not JSON"),
        (DEEP, 400, "nested too deeply"),
        (b"[" * 100_000, 422, "Expected `object`"),
        (b'{"x": ' * 100_000, 400, "nested too deeply"),
        (GOOD[:-1], 400, "not JSON"),
        (GOOD + b"x", 400, "not JSON"),
        (b"3", 422, "Expected `object`, got `int`"),
        (b"{}", 422, "missing required field `question`"),
        (b'{"question": "Why?"}', 422, "missing required field `choices`"),
        (b'{"question": "", "choices": ["a", "b"]}', 422, "question is empty - at `$.question`"),
        (b'{"question": "Why?", "choices": ["a"]}', 422, "1 choice; at least 2 are needed - at `$.choices`"),
        (b'{"question": "Why?", "choices": []}', 422, "0 choices; at least 2 are needed - at `$.choices`"),
        (b'{"question": "Why?", "choices": ["a", ""]}', 422, "choice 2 is empty - at `$.choices[1]`"),
        (b'{"question": "Why?", "choices": ["a", 3]}', 422, "$.choices[1]"),
        (b'{"question": "Why?", "choices": ["a", "b"], "context": 3}', 422, "$.context"),
        (b'{"question": "Why?", "choices": ["a", "b"], "contxt": "x"}', 422, "unknown field `contxt`"),
        (
            json.dumps({"question": "Why?", "choices": ["a"] * 17}).encode(),
            413,
            "17 choices; at most 16 are allowed - at `$.choices`",
        ),
        (
            json.dumps({"question": "x" * 20_001, "choices": ["a", "b"]}).encode(),
            422,
            "question has 20,001 characters; at most 20,000 are allowed - at `$.question`",
        ),
        (b'{"question": "Why?", "choices": ["a"], "choices": 3}', 422, "at `$.choices`"),
        (b'{"question": "", "question": 3, "choices": ["a", "b"]}', 422, "at `$.question`"),
        (b'{"model": "quiz", "question": "Why?", "choices": ["a", ""]}', 422, "choice 2 is empty - at `$.choices[1]`"),
        (b'{"model": "quiz", "question": "Why?", "choices": ["a", "b"], "\xff": 1}', 400, "not UTF-8"),
        (b'{"instances": []}', 422, "at least one instance"),
        (b'{"instances": 3}', 422, "$"),
        (json.dumps({"instances": [json.loads(GOOD)] * 4}).encode(), 413, "4 instances; at most 3 are allowed"),
        (
            json.dumps({"instances": [{"question": "x x x x x x", "choices": ["a"] * 16}]}).encode(),
            413,
            "160 tokens; one request may bring at most 150",
        ),
        (b'{"model": "x", "features": {"question": "Why?"}}', 422, "$.features"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else None,
)
def test_bad_body_gets_its_own_error_and_its_neighbours_their_answers(
    quiz: Pipeline, body: bytes | None, code: int, words: str
) -> None:
    before, bad, after = quiz.answer([Request(GOOD, "1"), Request(body, "2"), Request(GOOD, "3")])
    assert (before.code, bad.code, after.code) == (200, code, 200)
    error = json.loads(bad.body)
    assert set(error) == {"error", "detail"}
    assert words in error["detail"]
    assert bad.phrase.isascii()
    assert json.loads(before.body)["probabilities"] == json.loads(after.body)["probabilities"]


def test_explain_request_shares_a_batch_with_predictions(quiz: Pipeline) -> None:
    one, explain, two = quiz.answer([Request(GOOD, "1"), Request(GOOD, "2", explain=True), Request(GOOD, "3")])
    assert (one.code, explain.code, two.code) == (200, 501, 200)


def test_no_word_of_a_client_reaches_the_log(
    quiz: Pipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    evil = "x\n[METRICS]evil.ms:1|#type:COUNTER\nTorch worker started."
    bodies = [
        json.dumps({"question": evil, "choices": [evil, "b"]}).encode(),
        json.dumps({evil: evil}).encode(),
        evil.encode(),
        json.dumps({"instances": [{evil: 1}, evil]}).encode(),
    ]
    model: Any = quiz.task.model  # type: ignore[attr-defined]  # a MultipleChoice's
    monkeypatch.setattr(model, "run", lambda rows, deadline: 1 / 0)
    quiz.answer([Request(body, evil) for body in bodies])
    assert caplog.records, "the fault itself is logged"
    # A client may choose its request's id: in quotes, so that it is no line of its own.
    lines = [line for line in caplog.text.splitlines() if "evil" in line]
    assert [line.partition("request ")[2] for line in lines] == [repr(evil)]
    assert not [line for line in caplog.text.splitlines() if line.startswith(("[METRICS]", "Torch worker started"))]


def test_empty_batch_is_answered_with_nothing(quiz: Pipeline) -> None:
    assert quiz.answer([]) == []
