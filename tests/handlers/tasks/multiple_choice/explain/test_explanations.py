"""Explanations are right: they add up, equal the definition worked out by hand, and depend on the question alone."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from tests.handlers.loading import ask
from tests.handlers.tasks.multiple_choice.explain.asking import QUESTION, answers, explain, load, scores
from tests.handlers.tasks.multiple_choice.test_task import watch
from tests.questions import some_questions
from tests.tiny_models import KINDS

SHORT = {"question": "Why knife?", "choices": ["a spoon", "he poured"]}
SAME = 2e-4
"""Float32 noise of a random model whose logits are in the tens."""


class Plain:
    """Logits by plain transformers, with some words of the texts replaced; no code in common with the handlers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForMultipleChoice.from_pretrained(folder).eval()

    @torch.no_grad()
    def logit(self, question: dict[str, Any], choice: int, absent: set[tuple[str, int, int]] | None) -> float:
        """`absent`: words by field, start and end; None for all there are."""
        first = " ".join(filter(None, [question.get("context"), question["question"]]))
        encoded = self.tokenizer(first, question["choices"][choice], return_offsets_mapping=True, return_tensors="pt")
        shift = len(question["context"]) + 1 if question.get("context") else 0
        whole = {"context": 0, "question": shift}
        gone = [(0 if field in whole else 1, start + whole.get(field, 0), end + whole.get(field, 0))
                for field, start, end in absent or () if field in whole or field == f"choices[{choice}]"]  # fmt: skip
        ids = encoded["input_ids"].clone()
        for place, ((start, end), sequence) in enumerate(
            zip(encoded["offset_mapping"][0].tolist(), encoded.sequence_ids(0), strict=True)
        ):
            if sequence is not None and absent is None:
                ids[0, place] = self.tokenizer.mask_token_id
            if any(sequence == side and low < end and start < high for side, low, high in gone):
                ids[0, place] = self.tokenizer.mask_token_id
        inputs = {"input_ids": ids, "attention_mask": encoded["attention_mask"]}
        inputs |= {"token_type_ids": encoded["token_type_ids"]} if "token_type_ids" in encoded else {}
        return float(self.model(**{name: value.unsqueeze(1) for name, value in inputs.items()}).logits)


def spans(explanation: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(word["field"], word["start"], word["end"]) for word in explanation["words"]]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_scores_add_up_to_the_targets_change(kind: str, tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model(kind), max_steps=256 if kind == "bert" else 64)
    for target in ("logit", "margin", "probability") if kind == "bert" else ("logit",):
        [found] = explain(quiz, QUESTION, target=target)
        total = sum(scores(found)) - (found["value"] - found["baseline_value"])
        assert total == pytest.approx(found["delta"], abs=1e-4)
        assert found["complete"] is (abs(found["delta"]) <= found["delta_bound"])
        assert found["complete"] or found["steps"] == 64


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"bertweet"}))
def test_value_and_baseline_are_plain_transformers_own(kind: str, tiny_model: Callable[[str], Path]) -> None:
    plain = Plain(tiny_model(kind))
    [found] = explain(load(tiny_model(kind)), QUESTION, choices=[1], n_steps=2)
    assert found["value"] == pytest.approx(plain.logit(QUESTION, 1, set()), rel=1e-4, abs=1e-3)
    assert found["baseline_value"] == pytest.approx(plain.logit(QUESTION, 1, None), rel=1e-4, abs=1e-3)


def test_steps_are_raised_until_the_scores_add_up(tiny_model: Callable[[str], Path]) -> None:
    [few] = explain(load(tiny_model("bert"), max_steps=2), QUESTION, n_steps=2)
    [raised] = explain(load(tiny_model("bert"), max_steps=1024), QUESTION, n_steps=2)
    assert (few["complete"], few["steps"]) == (False, 2)
    assert raised["complete"]
    assert raised["steps"] > 2
    assert abs(raised["delta"]) <= raised["delta_bound"] < abs(few["delta"])


def test_an_explained_probability_is_the_calibrated_one_of_the_answer(tiny_model: Callable[[str], Path]) -> None:
    calibration = {"method": "temperature", "temperature": 1.0, "by_choices": {3: 0.1}}
    plain, quiz = load(tiny_model("bert")), load(tiny_model("bert"), calibration=calibration)
    for method in ("integrated_gradients", "shapley"):
        [answer] = answers(quiz, QUESTION, target="probability", method=method)
        [before] = answers(plain, QUESTION, target="probability", method=method)
        assert answer["explanations"][0]["value"] == pytest.approx(answer["confidence"], abs=1e-5)
        assert answer["confidence"] > before["confidence"] + 0.01
        assert answer["explanations"][0]["complete"]


@pytest.mark.parametrize("target", ["logit", "margin", "probability"])
def test_shapley_values_are_those_of_all_orders(target: str, tiny_model: Callable[[str], Path]) -> None:
    """By the definition: the mean gain of a word over all orders, each value asked of plain transformers."""
    [found] = explain(load(tiny_model("bert")), SHORT, method="shapley", target=target, choices=[0])
    assert found["exact"]
    plain, words = Plain(tiny_model("bert")), spans(found)
    known: dict[frozenset[Any], float] = {}

    def value(present: frozenset[Any]) -> float:
        if present not in known:
            mine, other = (plain.logit(SHORT, i, set(words) - present) for i in (0, 1))
            known[present] = {"logit": mine, "margin": mine - other, "probability": 1 / (1 + math.exp(other - mine))}[
                target
            ]
        return known[present]

    gains = dict.fromkeys(words, 0.0)
    orders = list(permutations(words))
    for order in orders:
        for i, word in enumerate(order):
            gains[word] += value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))
    expected = [gains[word] / len(orders) for word in words]
    assert scores(found) == pytest.approx(expected, abs=1e-3)
    assert max(map(abs, expected)) > 0.01


def test_sampled_shapley_values_come_with_their_error_and_add_up(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    [exact] = explain(quiz, SHORT | {"explain": {"samples": 512}}, method="shapley")
    few, again = explain(quiz, *[QUESTION | {"explain": {"samples": 40}}] * 2, method="shapley")
    assert exact["exact"]
    assert "standard_error" not in exact["words"][0]
    assert (few["exact"], few["steps"], few["complete"]) == (False, 40, True)
    assert scores(few) == scores(again)
    [many] = explain(quiz, QUESTION | {"explain": {"samples": 300}}, method="shapley")
    misses = [
        abs(a["score"] - b["score"]) / math.hypot(a["standard_error"], b["standard_error"])
        for a, b in zip(few["words"], many["words"], strict=True)
    ]
    assert sorted(misses)[len(misses) // 2] < 1.5, "half of the words lie within about 0.7 standard errors"
    assert max(misses) < 5


def test_occlusion_is_what_one_word_missing_changes(tiny_model: Callable[[str], Path]) -> None:
    plain = Plain(tiny_model("roberta"))
    [found] = explain(load(tiny_model("roberta")), QUESTION, method="occlusion", choices=[0])
    whole = plain.logit(QUESTION, 0, set())
    expected = [whole - plain.logit(QUESTION, 0, {word}) for word in spans(found)]
    assert scores(found) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_gradient_x_input_is_the_derivative_of_scaling_a_word(tiny_model: Callable[[str], Path]) -> None:
    plain = Plain(tiny_model("bert"))
    [found] = explain(load(tiny_model("bert")), SHORT, method="gradient_x_input", choices=[0])
    encoded = plain.tokenizer(SHORT["question"], SHORT["choices"][0], return_tensors="pt", return_offsets_mapping=True)
    offsets, sequences = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids(0)
    table = plain.model.get_input_embeddings()

    def logit(word: dict[str, Any], scale: float) -> float:
        side = 0 if word["field"] == "question" else 1
        mine = [
            s == side and a < word["end"] and word["start"] < b for (a, b), s in zip(offsets, sequences, strict=True)
        ]
        embedded = table(encoded["input_ids"]) * torch.where(torch.tensor(mine), scale, 1.0)[None, :, None]
        with torch.no_grad():
            inputs = {"attention_mask": encoded["attention_mask"], "token_type_ids": encoded["token_type_ids"]}
            kinds = {name: value.unsqueeze(1) for name, value in inputs.items()}
            return float(plain.model.double()(inputs_embeds=embedded.unsqueeze(1).double(), **kinds).logits)

    step = 1e-4
    expected = [(logit(word, 1 + step) - logit(word, 1 - step)) / (2 * step) for word in found["words"]]
    assert scores(found) == pytest.approx(expected, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"method": "integrated_gradients", "n_steps": 4}) for kind in ("bert", "roberta", "deberta")),
        ("mpnet", {"method": "gradient_x_input"}),
        ("bert", {"method": "shapley", "samples": 4}),
        ("roberta", {"method": "occlusion"}),
    ],
)
def test_batch_mates_and_padding_change_nothing(
    kind: str, options: dict[str, Any], tiny_model: Callable[[str], Path]
) -> None:
    quiz = load(tiny_model(kind), tokens_per_pass=100, max_steps=4)
    questions = [QUESTION, SHORT, *some_questions(3, seed=5)]
    together = explain(quiz, *questions, **options)
    for question, found in zip(questions, together, strict=True):
        [alone] = explain(quiz, question, **options)
        scale = max(1.0, *map(abs, scores(alone)))
        assert scores(found) == pytest.approx(scores(alone), abs=SAME * scale)


def test_margin_is_one_logit_less_the_other(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    [margin] = explain(quiz, QUESTION, target="margin", choices=[0], against=2, n_steps=64)
    [[mine], [other]] = [explain(quiz, QUESTION, choices=[c], n_steps=64) for c in (0, 2)]
    expected: dict[Any, float] = {}
    for sign, found in ((1, mine), (-1, other)):
        for place, score in zip(spans(found), scores(found), strict=True):
            expected[place] = expected.get(place, 0.0) + sign * score
    assert dict(zip(spans(margin), scores(margin), strict=True)) == pytest.approx(expected, abs=5e-3)


def test_margin_is_against_the_strongest_other_choice(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    [answer] = answers(quiz, QUESTION, target="margin", choices="all", method="gradient_x_input")
    order = sorted(range(3), key=lambda i: -answer["probabilities"][i])
    against = {found["choice"]: found["against"] for found in answer["explanations"]}
    assert against == {order[0]: order[1], order[1]: order[0], order[2]: order[0]}


def test_answer_is_the_predictions_own_and_offsets_are_the_clients(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    [answer] = answers(quiz, QUESTION, choices="all", n_steps=4)
    [(_, predicted)] = ask(quiz, [QUESTION])
    assert answer["probabilities"] == predicted["probabilities"]
    assert [found["label"] for found in answer["explanations"]] == QUESTION["choices"]
    for found in answer["explanations"]:
        for word in found["words"]:
            text = QUESTION["choices"][found["choice"]] if "[" in word["field"] else QUESTION[word["field"]]
            assert word["text"] == text[word["start"] : word["end"]]
        assert {word["field"] for word in found["words"]} == {"context", "question", f"choices[{found['choice']}]"}


def test_truncation_and_unknown_words_are_told(tiny_model: Callable[[str], Path]) -> None:
    long = {"context": "knife " * 30 + "bread", "question": "水 rain?", "choices": ["a spoon", "milk"]}
    [answer] = answers(load(tiny_model("bert"), max_tokens=24), long, method="occlusion")
    [found] = answer["explanations"]
    assert answer["truncated"]
    [cut] = found["not_seen"]
    assert (cut["field"], cut["start"]) == ("context", 0)
    seen = [word for word in found["words"] if word["field"] == "context"]
    assert cut["end"] <= seen[0]["start"]
    assert len(seen) < 31
    assert [word["text"] for word in found["words"] if word.get("unknown")] == ["水"]


def requests(*explains: dict[str, Any] | None) -> list[Request]:
    """One for each way to explain QUESTION; None for its prediction."""
    return [
        Request(json.dumps(QUESTION | ({"explain": how} if how else {})).encode(), f"id-{i}", explain=how is not None)
        for i, how in enumerate(explains)
    ]


@contextmanager
def passes_of(quiz: Pipeline, seconds: float) -> Iterator[list[float]]:
    """Each pass of the explainer's model takes so long; the list grows by the moments at which they begin."""
    assert quiz.explainer is not None
    model, begun = quiz.explainer.task._model, []  # type: ignore[attr-defined]  # an Explainer's
    compute = model.logits_showing

    def slow(*arguments: Any, **named: Any) -> Any:
        begun.append(time.monotonic())
        time.sleep(seconds)
        return compute(*arguments, **named)

    model.logits_showing = slow
    try:
        yield begun
    finally:
        del model.logits_showing


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"method": "shapley", "samples": 300}, "all of many orders"),
        ({"method": "shapley", "choices": [0], "samples": 2}, "every set of words"),
        ({"method": "occlusion", "choices": "all"}, "one word after the other"),
    ],
)
def test_removal_of_words_ends_with_the_batch(
    how: dict[str, Any], words: str, tiny_model: Callable[[str], Path]
) -> None:
    """A pass holds one set of words, each takes 20 ms, and all of them would take a second and more."""
    quiz = load(tiny_model("bert"), batch_seconds=0.3, tokens_per_pass=8)
    question = SHORT if how.get("samples") == 2 else QUESTION
    body = json.dumps(question | {"explain": how}).encode()
    with passes_of(quiz, 0.02) as begun:
        started = time.monotonic()
        [reply] = quiz.answer([Request(body, "x", explain=True)])
    assert (reply.code, json.loads(reply.body).get("error")) == (504, "out_of_time"), words
    assert len(begun) > 2
    assert max(begun) < started + 0.3 + 0.02


def test_explanation_that_runs_out_of_time_is_told_so_alone(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"), batch_seconds=0.4, tokens_per_pass=32)
    with passes_of(quiz, 0.05):
        replies = quiz.answer(requests({"method": "gradient_x_input"}, {"method": "shapley", "samples": 300}))
    assert [reply.code for reply in replies] == [200, 504]


def test_predictions_and_explanations_of_a_batch_share_one_deadline(tiny_model: Callable[[str], Path]) -> None:
    """The prediction takes half of the time, so that the explanations have but the other half."""
    quiz = load(tiny_model("bert"), batch_seconds=0.4, tokens_per_pass=32)
    watch(quiz, lambda rows: time.sleep(0.2))
    started = time.monotonic()
    with passes_of(quiz, 0.02) as begun:
        predicted, explained = quiz.answer(requests(None, {"method": "occlusion"}))
    assert (predicted.code, explained.code) == (200, 504)
    assert not begun or max(begun) < started + 0.4 + 0.02


def test_no_hook_is_left_on_the_model(tiny_model: Callable[[str], Path]) -> None:
    quiz = load(tiny_model("bert"))
    for method in ("integrated_gradients", "gradient_x_input", "shapley", "occlusion"):
        explain(quiz, SHORT, method=method)
    for module in quiz.explainer.task._model.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
