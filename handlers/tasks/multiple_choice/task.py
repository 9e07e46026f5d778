"""Multiple-choice questions, answered by any `AutoModelForMultipleChoice`.

Each choice is one row: (context and question, choice). The model scores the rows; a question's probabilities are the
softmax over its choices' scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Protocol

import msgspec

from handlers.core.settings import Settings
from handlers.core.task import Task
from handlers.protocols.tensors import Column
from handlers.text.tokenization import PairEncoder, Row

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


class Scorer(Protocol):
    """Runs the forward pass. `runtime` names library, number format and device: what else its scores depend on."""

    runtime: str

    def scores(self, rows: Sequence[Row], deadline: float) -> list[float | None]:
        """A logit per row, in order; None where the deadline (time.monotonic seconds) came first."""

    def warm_up(self) -> None:
        """Run the shapes that requests will bring."""


class MultipleChoice(Task[Question, Choice]):
    """Answers multiple-choice questions."""

    question_type: ClassVar[type[msgspec.Struct]] = Question
    outcome_type: ClassVar[type[Choice]] = Choice
    example: ClassVar[str] = '{"question": "...", "choices": ["...", "..."]}'
    inputs: ClassVar[tuple[Column, ...]] = (
        Column("question", "BYTES"),
        Column("choices", "BYTES", wide=True),
        Column("context", "BYTES", optional=True),
    )
    outputs: ClassVar[tuple[Column, ...]] = (
        Column("prediction", "INT64"),
        Column("label", "BYTES"),
        Column("confidence", "FP32"),
        Column("probabilities", "FP32", wide=True),
        Column("truncated", "BOOL"),
    )

    def __init__(self, name: str, version: str, settings: Settings, encoder: PairEncoder, scorer: Scorer) -> None:
        super().__init__(name, version, settings)
        self.encoder = encoder
        self.scorer = scorer

    def predict(self, questions: Sequence[Question], deadline: float) -> list[Choice | None]:
        """All questions' choices through the model together."""
        rows = self.encoder.encode(pairs(questions))
        scores = self.scorer.scores(rows, deadline)
        outcomes: list[Choice | None] = []
        start = 0
        for question in questions:
            end = start + len(question.choices)
            outcomes.append(choice_of(scores[start:end], any(row.truncated for row in rows[start:end])))
            start = end
        return outcomes

    def answer_of(self, question: Question, outcome: Choice, prediction_id: str, latency_ms: float) -> Answer:
        index = outcome.index
        return Answer(
            prediction_id=prediction_id,
            model=self.name,
            model_version=self.version,
            prediction=index,
            label=question.choices[index],
            confidence=round(outcome.probabilities[index], 6),
            probabilities=[round(p, 6) for p in outcome.probabilities],
            truncated=outcome.truncated,
            latency_ms=latency_ms,
        )

    @property
    def runtime(self) -> str:
        return self.scorer.runtime

    def canonical(self, text: str) -> str:
        return self.encoder.canonical(text)

    def fits(self, question: Question, outcome: Choice) -> bool:
        found = outcome.probabilities
        return len(found) == len(question.choices) and abs(math.fsum(found) - 1) < 1e-6 and min(found) >= 0

    def weight(self, question: Question) -> int:
        return len(question.choices)

    def warm_up(self) -> None:
        if self.explainer is None:
            self.scorer.warm_up()
        else:
            self.explainer.warm_up()  # those who ask why can wait longer than those who ask what


def first_text(question: Question) -> str:
    """The first text of every row: the context, if any, and the question last, where truncation spares it."""
    return f"{question.context} {question.question}" if question.context else question.question


def pairs(questions: Sequence[Question]) -> list[tuple[str, str]]:
    """The texts of every row, question by question."""
    return [(first_text(question), choice) for question in questions for choice in question.choices]


def choice_of(scores: Sequence[float | None], truncated: bool) -> Choice | None:
    """Softmax over one question's scores; None if any is missing. Raises ArithmeticError if one is not finite."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    if not all(map(math.isfinite, known)):
        raise ArithmeticError("the model gave a score that is not a finite number")
    peak = max(known)
    weights = [math.exp(score - peak) for score in known]
    total = sum(weights)
    return Choice([weight / total for weight in weights], truncated)
