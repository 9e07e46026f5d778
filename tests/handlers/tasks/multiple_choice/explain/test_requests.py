"""What a client may ask, and what it is told when it asks otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from tests.handlers import loading
from tests.handlers.tasks.multiple_choice.explain.asking import QUESTION, load

FAST = {"method": "gradient_x_input"}
GOOD = json.dumps(QUESTION | {"explain": FAST}).encode()


@pytest.fixture(scope="module")
def quiz(tiny_model: Callable[[str], Path]) -> Pipeline:
    return load(tiny_model("bert"), max_steps=64, max_samples=40, max_words=12, max_instances=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "at `$.explain.method`"),
        ({"target": "loss"}, "at `$.explain.target`"),
        ({"n_steps": 0}, "at `$.explain.n_steps`"),
        ({"n_steps": 65}, "Expected `int` <= 64, got 65 - at `$.explain.n_steps`"),
        ({"method": "shapley", "samples": 41}, "Expected `int` <= 40, got 41 - at `$.explain.samples`"),
        ({"method": "shapley", "n_steps": 8}, "`n_steps` belongs to the method integrated_gradients"),
        ({"samples": 8}, "`samples` belongs to the method shapley"),
        ({"choices": []}, "at `$.explain.choices`"),
        ({"choices": [0, 3]}, "Expected a choice's index, 0 to 2, got 3 - at `$.explain.choices[1]`"),
        ({"choices": [1, 1]}, "names one choice more than once"),
        ({"choices": "best"}, "at `$.explain.choices`"),
        ({"against": 1}, "`against` belongs to the target margin"),
        ({"target": "margin", "against": 7}, "at `$.explain.against`"),
        ({"target": "margin", "against": 1, "choices": [1]}, "at `$.explain.against`"),
        ({"method": "gradient_x_input", "baseline": "pad"}, "has no `baseline`"),
        ({"baseline": "zero"}, "at `$.explain.baseline`"),
        ({"format": "pdf"}, "at `$.explain.format`"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"method": "shapley"}, "expected at most 12 words for the method shapley, got"),
        (3, "at `$.explain`"),
    ],
    ids=str,
)
def test_bad_options_get_their_path_and_their_neighbours_explanations(quiz: Pipeline, options: Any, words: str) -> None:
    bad = json.dumps(QUESTION | {"explain": options}).encode()
    before, reply, after = quiz.answer([Request(body, "x", explain=True) for body in (GOOD, bad, GOOD)])
    assert (before.code, reply.code, after.code) == (200, 422, 200)
    error = json.loads(reply.body)
    assert error["error"] == "invalid_request"
    assert words in error["detail"]
    assert json.loads(before.body)["explanations"][0]["words"] == json.loads(after.body)["explanations"][0]["words"]


def test_a_prediction_s_request_is_an_explanation_s_too(quiz: Pipeline) -> None:
    [reply] = quiz.answer([Request(json.dumps(QUESTION).encode(), "x", explain=True)])
    [explanation] = json.loads(reply.body)["explanations"]
    assert (explanation["method"], explanation["target"]) == ("integrated_gradients", "logit")


def test_predictions_and_explanations_share_a_batch(quiz: Pipeline) -> None:
    plain = json.dumps(QUESTION).encode()
    replies = quiz.answer(
        [Request(plain, "1"), Request(GOOD, "2", explain=True), Request(GOOD, "3"), Request(plain, "4")]
    )
    one, explained, refused, two = (json.loads(reply.body) for reply in replies)
    assert "explanations" not in one
    for answer in (two, explained):
        assert answer["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    assert "unknown field `explain`" in refused["detail"]


def test_bad_instance_gets_its_error_in_its_place(quiz: Pipeline) -> None:
    good = QUESTION | {"explain": FAST}
    body = json.dumps({"instances": [good, {"question": "x", "choices": ["a"]}, good]}).encode()
    [reply] = quiz.answer([Request(body, "x", explain=True)])
    one, bad, two = json.loads(reply.body)["predictions"]
    assert one["explanations"][0]["words"] == two["explanations"][0]["words"]
    assert "$.instances[1].choices" in bad["detail"]


def test_more_instances_than_the_limit_are_too_large(quiz: Pipeline) -> None:
    [reply] = quiz.answer([Request(json.dumps({"instances": [QUESTION] * 4}).encode(), "x", explain=True)])
    assert (reply.code, json.loads(reply.body)["error"]) == (413, "too_large")


def test_worker_without_explanations_says_where_they_are(tiny_model: Callable[[str], Path]) -> None:
    [reply] = loading.load(tiny_model("bert")).answer([Request(GOOD, "x", explain=True)])
    assert reply.code == 501
    assert "explanations: {workers: 1}" in json.loads(reply.body)["detail"]


def test_what_was_explained_and_what_did_not_add_up_is_counted(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"), max_steps=1)
    body = json.dumps(QUESTION | {"explain": {"choices": "all", "n_steps": 1}}).encode()
    [short] = quiz.answer([Request(body, "x", explain=True)])
    incomplete = [found["complete"] for found in json.loads(short.body)["explanations"]].count(False)
    quiz.answer([Request(GOOD, "x", explain=True)])
    totals = quiz.totals()
    assert totals["handler_explanations_total"] == 4
    assert totals["handler_explanations_incomplete_total"] == incomplete > 0, "the quick method promises nothing"
    assert totals["handler_explanation_seconds_total"] > 0
