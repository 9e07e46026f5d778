from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marctl.core.errors import UserError
from marctl.train.evaluate import evaluate, read_rows
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from tests.handlers.loading import load
from tests.questions import some_questions


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_accuracy_equals_plain_transformers_with_and_without_repeats(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("bert")
    rows: list[dict[str, Any]] = [{**question, "label": i % 2} for i, question in enumerate(some_questions(50, seed=5))]
    file = write(tmp_path / "set" / "dev.jsonl", rows)
    shuffled = [{**row, "choices": row["choices"][::-1]} for row in rows[:10]]
    write(tmp_path / "set" / "train.jsonl", shuffled)
    pipeline = load(folder)
    asked = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    expected = MultipleChoice.reference(folder, asked, pipeline.settings)
    hits = [answer["prediction"] == row["label"] for answer, row in zip(expected, rows, strict=True)]
    score = evaluate(pipeline, file)
    assert (score.questions, score.right) == (50, sum(hits))
    assert (score.unrepeated, score.right_unrepeated) == (40, sum(hits[10:]))


def test_changed_answers_are_those_that_differ_from_the_other_version_s(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folders = [tiny_model("bert"), tiny_model("roberta")]
    asked = some_questions(50, seed=5)
    file = write(tmp_path / "set" / "dev.jsonl", [{**question, "label": 0} for question in asked])
    pipelines = [load(folder) for folder in folders]
    chosen = [
        [answer["prediction"] for answer in MultipleChoice.reference(folder, asked, pipeline.settings)]
        for folder, pipeline in zip(folders, pipelines, strict=True)
    ]
    expected = sum(one != other for one, other in zip(*chosen, strict=True))
    assert expected > 0
    assert evaluate(pipelines[0], file, exact=pipelines[1]).changed == expected
    assert evaluate(pipelines[0], file).changed is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question": "a", "choices": ["x", "y"], "label": 2}', "label is 2, but there are 2 choices"),
        ('{"question": "a", "choices": ["x", "y"]}', "no label"),
        ("{", "dev.jsonl:2"),
    ],
)
def test_bad_row_is_named(row: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"question": "a", "choices": ["x", "y"], "label": 0}\n' + row + "\n")
    with pytest.raises(UserError, match=words):
        read_rows(path, MultipleChoice)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        read_rows(tmp_path / "dev.jsonl", MultipleChoice)
