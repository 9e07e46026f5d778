"""What follows from a task's two types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task


class Text(msgspec.Struct, frozen=True):
    text: str


class Verdict(msgspec.Struct, frozen=True):
    score: float
    label: str
    parts: list[float]
    sure: bool | None = None
    notes: dict[str, str] = {}


class Judge(Task[Text, Verdict]):
    def load(self, folder: Path) -> None:
        pass

    def predict(self, questions: Sequence[Text], deadline: float) -> list[Verdict | None]:
        return [Verdict(0.5, question.text, [0.5]) for question in questions]


def test_an_answer_is_the_outcome_between_the_stamp_s_fields() -> None:
    task = Judge(Settings(task="judge"))
    answer = task.answer(Text("a"), Verdict(0.5, "a", [1.0]), Stamp("id", "judge", "1.0", 2.0))
    assert msgspec.to_builtins(answer) == {
        "prediction_id": "id",
        "model": "judge",
        "model_version": "1.0",
        "score": 0.5,
        "label": "a",
        "parts": [1.0],
        "sure": None,
        "notes": {},
        "latency_ms": 2.0,
    }


def test_the_log_keeps_what_it_can_and_the_first_column_is_the_label_s_type() -> None:
    assert Judge.log_columns == (
        LogColumn("score", "float"),
        LogColumn("label", "str"),
        LogColumn("parts", "floats"),
        LogColumn("sure", "bool"),
    )
    assert Judge.label_type is float


class Own(msgspec.Struct):
    """An answer type of the task's own."""

    said: str


class Mild(Judge):
    answer_type = Own
    log_columns = (LogColumn("label", "str"),)


class Milder(Mild):
    pass


def test_a_subclass_keeps_what_its_parent_says() -> None:
    assert (Milder.question_type, Milder.outcome_type, Milder.answer_type) == (Text, Verdict, Own)
    assert Milder.log_columns == (LogColumn("label", "str"),)


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ((), "names no types; write class Wrong\\(Task\\[Question, Outcome\\]\\)"),
        ((Text, dict), "its outcome type is <class 'dict'>; expected a subclass of msgspec.Struct"),
        ((str, Verdict), "its question type is <class 'str'>"),
    ],
)
def test_a_task_without_its_types_is_told_what_to_write(types: Any, words: str) -> None:
    base: Any = Task[types] if types else Task
    with pytest.raises(TypeError, match=words):
        type("Wrong", (Task,), {"__orig_bases__": (base,)})


def test_a_field_that_every_answer_has_cannot_be_the_outcome_s() -> None:
    class Timed(msgspec.Struct):
        latency_ms: float

    with pytest.raises(TypeError, match=r"Timed\.latency_ms: every answer has a field of this name"):

        class Wrong(Task[Text, Timed]):
            pass
