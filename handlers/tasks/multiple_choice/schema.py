"""Questions, answers and settings of the multiple-choice task."""

from __future__ import annotations

from typing import Annotated

import msgspec

from marctl_handlers.core.columns import LogColumn

LONGEST_TEXT = 20_000
"""Characters; far beyond any token limit here, so that a longer text can only be a mistake."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TEXT)]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One multiple-choice question."""

    question: Text
    choices: Annotated[tuple[Text, ...], msgspec.Meta(min_length=2, max_length=16)]
    context: Annotated[str, msgspec.Meta(max_length=LONGEST_TEXT)] | None = None


class Answer(msgspec.Struct, frozen=True):
    """`prediction` is the index of the chosen choice, `label` its text; `truncated`: the model saw only a part."""

    prediction_id: str
    model: str
    model_version: str
    prediction: int
    label: str
    confidence: float
    probabilities: list[float]
    truncated: bool
    latency_ms: float


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """What the model made of one question. `probabilities` sum to 1, one per choice."""

    probabilities: list[float]
    truncated: bool

    @property
    def index(self) -> int:
        return self.probabilities.index(max(self.probabilities))


LOG_COLUMNS = (
    LogColumn("prediction", "int"),
    LogColumn("confidence", "float"),
    LogColumn("probabilities", "floats", scores_of="prediction"),
)
"""Of predictions and of explained ones alike."""


def first_text(question: Question) -> str:
    """The first text of every row: the context, if any, and the question last, where truncation spares it."""
    return f"{question.context} {question.question}" if question.context else question.question


def pairs(question: Question) -> list[tuple[str, str]]:
    """The texts of a question's rows."""
    first = first_text(question)
    return [(first, choice) for choice in question.choices]
