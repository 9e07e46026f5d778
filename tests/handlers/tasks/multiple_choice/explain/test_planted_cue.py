"""A model that was taught to look at one word alone: the methods must find that word.

Gradient x input is not among them: where a model is sure, as this one is, its gradient is flat.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultipleChoice

from tests.handlers.tasks.multiple_choice.explain.asking import explain, load
from tests.tiny_models import CORPUS, bert, wordpiece

CUE = "knife"
WORDS = sorted({word.strip("?.,;!").lower() for word in " ".join(CORPUS).split()} - {CUE})


def some_question(dice: random.Random) -> tuple[str, list[str], int]:
    """Random words; the right choice is the one with the cue."""
    choices = [dice.choices(WORDS, k=dice.randint(1, 4)) for _ in range(3)]
    right = dice.randrange(3)
    choices[right].insert(dice.randrange(len(choices[right]) + 1), CUE)
    return " ".join(dice.choices(WORDS, k=dice.randint(2, 6))), [" ".join(choice) for choice in choices], right


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, trained until it answers all of a fresh batch rightly."""
    torch.manual_seed(0)
    dice = random.Random(0)
    tokenizer: Any = wordpiece()
    model = AutoModelForMultipleChoice.from_config(bert(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(400):
        questions = [some_question(dice) for _ in range(16)]
        pairs = [(question, choice) for question, choices, _ in questions for choice in choices]
        encoded = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
        labels = torch.tensor([right for _, _, right in questions])
        out = model(**{name: value.view(16, 3, -1) for name, value in encoded.items()}, labels=labels)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if out.loss < 0.01 and bool((out.logits.argmax(-1) == labels).all()):
            break
    folder = tmp_path_factory.mktemp("taught")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["integrated_gradients", "shapley", "occlusion"])
@pytest.mark.parametrize("target", ["logit", "margin"])
def test_the_one_word_that_matters_comes_out_on_top(method: str, target: str, taught: Path) -> None:
    quiz, dice = load(taught), random.Random(1)
    questions = [some_question(dice) for _ in range(10)]
    bodies = [{"question": question, "choices": choices} for question, choices, _ in questions]
    for (_, _, right), found in zip(questions, explain(quiz, *bodies, method=method, target=target), strict=True):
        assert found["choice"] == right
        top = max(found["words"], key=lambda word: abs(word["score"]))
        assert (top["text"], top["field"]) == (CUE, f"choices[{right}]")
        assert top["score"] > 0
