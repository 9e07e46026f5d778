"""Answers must equal plain transformers one request at a time, for every kind of model, whatever shares the batch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from handlers.core.settings import Settings
from handlers.core.task import Request
from handlers.loading import load_multiple_choice
from handlers.tasks.multiple_choice.task import Question, choice_of
from scripts.build.reference import plain_probabilities
from tests.tiny_models import CORPUS, KINDS

WORDS = " ".join(CORPUS).split()
FLOAT32_BOUND = 1e-5


def settings(**changes: Any) -> Settings:
    return Settings(task="multiple_choice", precision="float32", max_tokens=64, **changes)


def load(folder: Path, **changes: Any) -> Any:
    return load_multiple_choice(folder, "quiz", "1.0", settings(**changes), "cpu")


def some_questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Ragged: 2 to 16 choices, short and long, with and without context."""
    dice = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(low, high)))

    questions = []
    for _ in range(count):
        question: dict[str, Any] = {
            "question": text(1, 12),
            "choices": [text(1, 5) for _ in range(dice.randint(2, 16))],
        }
        if dice.random() < 0.5:
            question["context"] = text(1, 12)
        questions.append(question)
    return questions


def ask(task: Any, bodies: list[Any]) -> list[tuple[int, Any]]:
    raw = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    replies = task.answer([Request(body, f"id-{i}") for i, body in enumerate(raw)])
    return [(reply.code, json.loads(reply.body)) for reply in replies]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_answers_equal_plain_transformers_one_at_a_time(kind: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(kind)
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    questions = some_questions(24)
    spread = 0.0
    for question, (code, answer) in zip(questions, ask(load(folder), questions), strict=True):
        expected = plain_probabilities(
            model, tokenizer, Question(question["question"], tuple(question["choices"]), question.get("context")), 64
        )
        assert code == 200
        assert answer["probabilities"] == pytest.approx(expected, abs=FLOAT32_BOUND)
        assert answer["label"] == question["choices"][answer["prediction"]]
        assert answer["confidence"] == max(answer["probabilities"])
        spread = max(spread, max(expected) - min(expected))
    assert spread > 0.05, "the model answers everything alike: the comparison above would prove nothing"


def test_batch_mates_do_not_change_an_answer(tiny_model: Callable[[str], Path]) -> None:
    task = load(tiny_model("bert"), rows_per_pass=7)
    questions = some_questions(20, seed=1)
    together = ask(task, questions)
    for question, (_, answer) in zip(questions, together, strict=True):
        [(_, alone)] = ask(task, [question])
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=FLOAT32_BOUND)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bertweet"])
def test_truncation_keeps_the_choice_and_says_so(kind: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(kind)
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    long = {"question": " ".join(WORDS * 3), "choices": ["a knife", "orange juice"]}
    [(code, answer), (_, short)] = ask(load(folder), [long, {"question": "Why?", "choices": ["a", "b"]}])
    assert (code, answer["truncated"], short["truncated"]) == (200, True, False)
    expected = plain_probabilities(model, tokenizer, Question(long["question"], tuple(long["choices"])), 64)
    assert answer["probabilities"] == pytest.approx(expected, abs=FLOAT32_BOUND)


def test_choice_longer_than_the_limit_is_answered_and_marked(tiny_model: Callable[[str], Path]) -> None:
    [(code, answer)] = ask(load(tiny_model("bert")), [{"question": "Why?", "choices": [" ".join(WORDS * 5), "b"]}])
    assert (code, answer["truncated"]) == (200, True)


def test_several_instances_get_their_own_answer_or_error_in_order(tiny_model: Callable[[str], Path]) -> None:
    task = load(tiny_model("bert"))
    good = some_questions(2, seed=2)
    [(code, answer), (_, first), (_, second)] = ask(
        task, [{"instances": [good[0], {"question": "x", "choices": ["one"]}, good[1]]}, *good]
    )
    assert code == 200
    one, bad, two = answer["predictions"]
    assert one["probabilities"] == pytest.approx(first["probabilities"], abs=FLOAT32_BOUND)
    assert two["probabilities"] == pytest.approx(second["probabilities"], abs=FLOAT32_BOUND)
    assert bad["error"] == "invalid_request"
    assert "$.instances[1].choices" in bad["detail"]
    assert (one["prediction_id"], two["prediction_id"]) == ("id-0:0", "id-0:2")


def test_features_form_equals_the_bare_question(tiny_model: Callable[[str], Path]) -> None:
    [question] = some_questions(1)
    (_, bare), (_, wrapped) = ask(load(tiny_model("bert")), [question, {"model": "quiz", "features": question}])
    assert wrapped["probabilities"] == bare["probabilities"]


def test_reduced_precision_stays_within_its_bound(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("bert")
    questions = some_questions(40, seed=3)
    exact = ask(load(folder), questions)
    task = load_multiple_choice(
        folder, "quiz", "1.0", Settings(task="multiple_choice", precision="bfloat16", max_tokens=64), "cpu"
    )
    for (_, a), (_, b) in zip(exact, ask(task, questions), strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=0.05)


def test_model_that_breaks_on_one_question_breaks_for_it_alone(tiny_model: Callable[[str], Path]) -> None:
    task = load(tiny_model("bert"))
    scores = task.scorer.scores

    def fragile(rows: Any, deadline: float) -> Any:
        if any(len(row.ids) > 50 for row in rows):
            raise RuntimeError("secret detail")
        return scores(rows, deadline)

    task.scorer.scores = fragile
    short = {"question": "Why?", "choices": ["a", "b"]}
    (one, _), (code, error), (two, _) = ask(task, [short, {"question": " ".join(WORDS), "choices": ["a", "b"]}, short])
    assert (one, code, two) == (200, 500, 200)
    assert error["error"] == "model_failed"
    assert "secret" not in error["detail"]


def test_heavy_request_runs_out_of_time_alone(tiny_model: Callable[[str], Path]) -> None:
    task = load(tiny_model("bert"), batch_seconds=0.0, rows_per_pass=16)
    single = {"question": "Why?", "choices": ["a", "b"]}
    (_, heavy), (code, _) = ask(task, [{"instances": [single] * 30}, single])
    assert code == 200
    assert {answer.get("error") for answer in heavy["predictions"]} == {None, "out_of_time"}


def test_single_questions_are_computed_before_heavy_requests(tiny_model: Callable[[str], Path]) -> None:
    task = load(tiny_model("bert"))
    scores, passes = task.scorer.scores, []

    def watched(rows: Any, deadline: float) -> Any:
        passes.append(len(rows))
        return scores(rows, deadline)

    task.scorer.scores = watched
    single = {"question": "Why?", "choices": ["a", "b"]}
    ask(task, [{"instances": [single] * 30}, single])
    assert passes == [2, 60]


def test_not_finite_scores_are_a_fault_not_an_answer() -> None:
    with pytest.raises(ArithmeticError):
        choice_of([1.0, float("nan")], truncated=False)
