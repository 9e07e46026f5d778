"""A task without a model, which fails where a question tells it to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from marctl_handlers.core.errors import HandlerError, Invalid
from marctl_handlers.core.forms import Decoded, Form, Result
from marctl_handlers.core.json_form import JsonForm
from marctl_handlers.core.messages import Logged, Model, Reply, Request, Stamp
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task


class Text(msgspec.Struct, frozen=True):
    """`text` is a word, or the name of the step that is to fail."""

    text: str


class Length(msgspec.Struct, frozen=True):
    length: int
    extra: Any = None


class SmallSettings(Settings, frozen=True, kw_only=True):
    most: int | None = None
    """Characters in one request."""

    @property
    def max_cost(self) -> int | None:
        return self.most


class FaultError(Exception):
    """Not one that a client could have caused."""


def fail_at(step: str, question: Any) -> None:
    if getattr(question, "text", question) == step:
        raise FaultError(f"secret of {step}")


class SmallForm(JsonForm):
    """Plain JSON with faults."""

    def decode(self, request: Request) -> Decoded:
        decoded = super().decode(request)
        fail_at("decode", first(decoded))
        return decoded

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        fail_at("encode", first(decoded))
        return super().encode(decoded, results, headers)

    def refuse(self, error: HandlerError, headers: Mapping[str, str]) -> Reply:
        fail_at("refuse", str(error))
        return super().refuse(error, headers)


def first(decoded: Decoded) -> str:
    return getattr(decoded.questions[0], "text", "")


class Small(Task[Text, Length]):
    """Answers a text's length. `batches` are the texts of each call of `predict`, which takes `seconds` a text."""

    settings_type: ClassVar[type[Settings]] = SmallSettings
    cost_unit: ClassVar[str] = "characters"
    seconds = 0.0

    def load(self, folder: Path | None = None) -> None:
        self.batches: list[list[str]] = []

    def form(self) -> Form:
        return SmallForm(Text, '{"text": "..."}', self.settings.max_instances)

    def check(self, question: Text) -> None:
        fail_at("check", question)
        if question.text == "refuse":
            raise Invalid("refuse")

    def complete(self, questions: Sequence[Text]) -> Sequence[Text | HandlerError]:
        for question in questions:
            fail_at("complete", question)
        return [
            Invalid("as the store says") if getattr(question, "text", "") == "lacking" else question
            for question in questions
        ]

    def cost(self, questions: Sequence[Text]) -> int:
        for question in questions:
            fail_at("cost", question)
        return sum(len(question.text) for question in questions)

    def predict(self, questions: Sequence[Text], deadline: float) -> Sequence[Any]:
        self.batches.append([question.text for question in questions])
        time.sleep(self.seconds * len(questions))
        for question in questions:
            fail_at("predict", question)
            if question.text == "wait and fail":
                time.sleep(0.1)
                raise FaultError("after some time")
        return [self.outcome(question.text) for question in questions]

    def outcome(self, text: str) -> Any:
        special = {
            "late": None,
            "no outcome": 3,
            "own error": Invalid("as the model says"),
            "encoding": Length(8, object()),
        }
        return special.get(text, Length(len(text)))

    def answer(self, question: Text, outcome: Length, stamp: Stamp) -> msgspec.Struct:
        fail_at("answer", question)
        return super().answer(question, outcome, stamp)

    def log_values(self, question: Text, outcome: Length) -> Mapping[str, Any]:
        fail_at("log_values", question)
        return super().log_values(question, outcome)

    def fits(self, question: Text, outcome: Length) -> bool:
        fail_at("fits", question)
        return True


class ListLog:
    """A log that can be read."""

    def __init__(self) -> None:
        self.records: list[Logged] = []

    def add(self, record: Logged) -> None:
        fail_at("add", record.question)
        self.records.append(record)

    def label(self, body: bytes | None) -> msgspec.Struct:
        raise FaultError("secret of label")

    def totals(self) -> Mapping[str, int]:
        return {}


def small(**settings: Any) -> tuple[Pipeline, Small, ListLog]:
    """A pipeline, its task and its log."""
    task = Small(SmallSettings(task="small", **settings))
    task.load()
    pipeline, log = Pipeline(task, Model("small", "1.0")), ListLog()
    pipeline.log = log
    return pipeline, task, log
