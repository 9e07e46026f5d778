from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlers.core.settings import Settings
from handlers.loading import load_multiple_choice
from handlers.tasks.multiple_choice.task import Question
from scripts.build.recipe import Expected, Recipe, Sample, Version, Weights
from scripts.build.reference import plain_probabilities
from scripts.build.weights import load_weights
from scripts.core.errors import UserError
from scripts.train.evaluate import evaluate
from scripts.train.questions import read_questions
from tests.handlers.tasks.multiple_choice.test_task import some_questions


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_accuracy_equals_plain_transformers_with_and_without_repeats(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("bert")
    rows: list[dict[str, Any]] = [{**question, "label": i % 2} for i, question in enumerate(some_questions(50, seed=5))]
    dataset = read_questions(write(tmp_path / "set" / "dev.jsonl", rows))
    shuffled = [{**row, "choices": row["choices"][::-1]} for row in rows[:10]]
    write(tmp_path / "set" / "train.jsonl", shuffled)
    task = load_multiple_choice(
        folder, "quiz", "1.0", Settings(task="multiple_choice", precision="float32", max_tokens=64), "cpu"
    )
    sample = Sample(Question("Why?", ("a", "b")), Expected(0))
    recipe = Recipe(task="multiple_choice", description="", weights=Weights(directory=str(folder)), samples=[sample])
    model, tokenizer = load_weights(Version(tmp_path, recipe))
    hits = []
    for q in dataset.questions:
        probabilities = plain_probabilities(model, tokenizer, Question(q.question, q.choices, q.context), 64)
        hits.append(probabilities.index(max(probabilities)) == q.label)
    score = evaluate(task, dataset)
    assert (score.questions, score.right) == (50, sum(hits))
    assert (score.unrepeated, score.right_unrepeated) == (40, sum(hits[10:]))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question": "a", "choices": ["x", "y"], "label": 2}', "label is 2, but there are 2 choices"),
        ('{"question": "a", "choices": ["x", "y"]}', "missing required field `label`"),
        ("{", "dev.jsonl:2"),
    ],
)
def test_bad_row_is_named(row: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"question": "a", "choices": ["x", "y"], "label": 0}\n' + row + "\n")
    with pytest.raises(UserError, match=words):
        read_questions(path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no questions"):
        read_questions(tmp_path / "dev.jsonl")
