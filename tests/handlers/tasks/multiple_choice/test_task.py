"""Answers must equal plain transformers one request at a time, for every kind of model, whatever shares the batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.reference import plain_answers
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice, choice_of
from tests.handlers.loading import ask, load
from tests.questions import FLOAT32_BOUND, WORDS, some_questions
from tests.tiny_models import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_answers_equal_plain_transformers_one_at_a_time(kind: str, tiny_model: Callable[[str], Path]) -> None:
    folder, questions = tiny_model(kind), some_questions(24)
    spread = 0.0
    plain = plain_answers(folder, questions, max_tokens=64)
    for question, expected, (code, answer) in zip(questions, plain, ask(load(folder), questions), strict=True):
        assert code == 200
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=FLOAT32_BOUND)
        assert answer["label"] == question["choices"][answer["prediction"]]
        assert answer["confidence"] == max(answer["probabilities"])
        spread = max(spread, max(expected["probabilities"]) - min(expected["probabilities"]))
    assert spread > 0.05, "the model answers everything alike: the comparison above would prove nothing"


def test_batch_mates_do_not_change_an_answer(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"), rows_per_pass=7)
    questions = some_questions(20, seed=1)
    together = ask(quiz, questions)
    for question, (_, answer) in zip(questions, together, strict=True):
        [(_, alone)] = ask(quiz, [question])
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=FLOAT32_BOUND)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bertweet"])
def test_truncation_keeps_the_choice_and_says_so(kind: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(kind)
    long = {"question": " ".join(WORDS * 3), "choices": ["a knife", "orange juice"]}
    [(code, answer), (_, short)] = ask(load(folder), [long, {"question": "Why?", "choices": ["a", "b"]}])
    assert (code, answer["truncated"], short["truncated"]) == (200, True, False)
    [expected] = plain_answers(folder, [long], max_tokens=64)
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=FLOAT32_BOUND)


def test_choice_longer_than_the_limit_is_answered_and_marked(tiny_model: Callable[[str], Path]) -> None:
    [(code, answer)] = ask(load(tiny_model("bert")), [{"question": "Why?", "choices": [" ".join(WORDS * 5), "b"]}])
    assert (code, answer["truncated"]) == (200, True)


def test_several_instances_get_their_own_answer_or_error_in_order(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    good = some_questions(2, seed=2)
    [(code, answer), (_, first), (_, second)] = ask(
        quiz, [{"instances": [good[0], {"question": "x", "choices": ["one"]}, good[1]]}, *good]
    )
    assert code == 200
    one, bad, two = answer["predictions"]
    assert one["probabilities"] == pytest.approx(first["probabilities"], abs=FLOAT32_BOUND)
    assert two["probabilities"] == pytest.approx(second["probabilities"], abs=FLOAT32_BOUND)
    assert bad["error"] == "invalid_request"
    assert "$.instances[1].choices" in bad["detail"]
    assert (one["prediction_id"], two["prediction_id"]) == ("id-0:0", "id-0:2")


def test_a_model_may_be_named_beside_the_question_or_beside_its_features(tiny_model: Callable[[str], Path]) -> None:
    [question] = some_questions(1)
    forms = [question, {"model": "quiz", "features": question}, {"model": "quiz", **question}]
    answers = [answer["probabilities"] for _, answer in ask(load(tiny_model("bert")), forms)]
    assert answers == [answers[0]] * 3


def test_reduced_precision_stays_within_its_bound(tiny_model: Callable[[str], Path]) -> None:
    questions = some_questions(40, seed=3)
    exact, reduced = (ask(load(tiny_model("bert"), precision=p), questions) for p in ("float32", "bfloat16"))
    for (_, a), (_, b) in zip(exact, reduced, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=0.05)


def watch(quiz: Pipeline, before: Callable[[Any], None]) -> None:
    """Call `before` with the rows of every run of the model."""
    assert isinstance(quiz.task, MultipleChoice)
    model: Any = quiz.task.model
    run = model.run

    def watched(rows: Any, deadline: float) -> Any:
        before(rows)
        return run(rows, deadline)

    model.run = watched


def test_model_that_breaks_on_one_question_breaks_for_it_alone(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))

    def fragile(rows: Any) -> None:
        if any(len(row.ids) > 50 for row in rows):
            raise RuntimeError("secret detail")

    watch(quiz, fragile)
    short = {"question": "Why?", "choices": ["a", "b"]}
    (one, _), (code, error), (two, _) = ask(quiz, [short, {"question": " ".join(WORDS), "choices": ["a", "b"]}, short])
    assert (one, code, two) == (200, 500, 200)
    assert error["error"] == "model_failed"
    assert "secret" not in error["detail"]


def test_scores_that_are_not_finite_are_their_own_request_s_failure(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    assert isinstance(quiz.task, MultipleChoice)
    model: Any = quiz.task.model
    run = model.run
    model.run = lambda rows, deadline: [
        float("nan") if len(row.ids) > 50 else score for row, score in zip(rows, run(rows, deadline), strict=True)
    ]
    short = {"question": "Why?", "choices": ["a", "b"]}
    long = {"question": " ".join(WORDS), "choices": ["a", "b"]}
    (one, _), (code, error), (two, _) = ask(quiz, [short, long, short])
    assert (one, code, error["error"], two) == (200, 500, "model_failed", 200)
    [(_, several)] = ask(quiz, [{"instances": [short, long, short]}])
    assert [answer.get("error") for answer in several["predictions"]] == [None, "model_failed", None]


def test_heavy_request_runs_out_of_time_alone(tiny_model: Callable[[str], Path]) -> None:
    """Sixteen rows a pass, each of 0.3 s: the small request takes one; the time ends within the large one's first."""
    quiz = load(tiny_model("bert"), batch_seconds=0.4, rows_per_pass=16, max_request_tokens=640)
    assert isinstance(quiz.task, MultipleChoice)
    model: Any = quiz.task.model
    passes = model._passes
    model._passes = lambda rows: (time.sleep(0.3) or places for places in passes(rows))
    single = {"question": "Why?", "choices": ["a", "b"]}
    (_, heavy), (code, _) = ask(quiz, [{"instances": [single] * 30}, single])
    assert code == 200
    assert [answer.get("error") for answer in heavy["predictions"]] == [None] * 8 + ["out_of_time"] * 22


def test_single_questions_are_computed_before_heavy_requests(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"), max_request_tokens=640)
    passes: list[int] = []
    watch(quiz, lambda rows: passes.append(len(rows)))
    single = {"question": "Why?", "choices": ["a", "b"]}
    ask(quiz, [{"instances": [single] * 30}, single])
    assert passes == [2, 60]


def test_a_request_beyond_the_limit_is_told_its_tokens_and_is_not_computed(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"), max_request_tokens=160)
    passes: list[int] = []
    watch(quiz, lambda rows: passes.append(len(rows)))
    single = {"question": "Why?", "choices": ["a", "b"]}
    (code, error), (neighbour, _) = ask(quiz, [{"instances": [single] * 14}, single])
    assert (code, neighbour) == (413, 200)
    assert error["detail"] == "168 tokens; one request may bring at most 160; send several requests"
    assert passes == [2]


def test_tokens_are_counted_as_the_model_computes_them(tiny_model: Callable[[str], Path]) -> None:
    """Cut at the longest row, special tokens included."""
    quiz = load(tiny_model("bert"), max_request_tokens=127)
    long = {"question": " ".join(WORDS * 9), "choices": ["a", "b"]}
    [(code, error)] = ask(quiz, [long])
    assert (code, error["detail"].split(";")[0]) == (413, "128 tokens")


def test_not_finite_scores_are_a_fault_not_an_answer() -> None:
    with pytest.raises(ArithmeticError):
        choice_of([1.0, float("nan")], truncated=False)
