"""The part of an answer that explains it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from marctl_handlers.explanations.outcome import Found
from marctl_handlers.tasks.multiple_choice.explain.cases import Case
from marctl_handlers.tasks.multiple_choice.explain.request import Baseline, Method, Target
from marctl_handlers.tasks.multiple_choice.schema import Answer

DIGITS = 6


class WordScore(msgspec.Struct, frozen=True, omit_defaults=True):
    """A word's contribution to the target, in the target's unit; a negative score counts against it.

    `field[start:end]` of the client's own string, counted in characters (Unicode code points).
    """

    field: str
    start: int
    end: int
    text: str
    score: float
    standard_error: float | None = None
    unknown: bool = False
    """The model knows this word, or a part of it, only as unknown."""
    partly_cut: bool = False
    """A part of it was beyond the token limit."""


class Stretch(msgspec.Struct, frozen=True):
    """A part of a string that the model did not see, cut at the token limit or without a token of its own."""

    field: str
    start: int
    end: int


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Explains one choice's target. Scores sum to `value` - `baseline_value` + `delta`."""

    choice: int
    label: str
    method: Method
    target: Target
    against: int | None = None
    baseline: Baseline | str
    value: float
    baseline_value: float
    delta: float
    delta_bound: float
    complete: bool
    """Whether |delta| is within its bound."""
    steps: int | None = None
    exact: bool | None = None
    precision: str = ""
    compute_ms: float
    words: list[WordScore]
    not_seen: list[Stretch] = []


class ExplainedAnswer(Answer, frozen=True, kw_only=True):
    """A prediction's answer, computed in float32, with its explanations."""

    explanations: list[Explanation]


def explanation_of(case: Case, found: Found, label: str, baseline: str) -> Explanation:
    """One case as the client reads it: whole words, and their places in the client's own strings."""
    spread: Sequence[float | None] = found.spread or [None] * len(case.words)
    words = [
        WordScore(
            field=word.field,
            start=word.start,
            end=word.end,
            text=word.text,
            score=round(score, DIGITS),
            standard_error=None if error is None else round(error, DIGITS),
            unknown=word.unknown,
            partly_cut=word.partly_cut,
        )
        for word, score, error in zip(case.words, found.scores, spread, strict=True)
    ]
    return Explanation(
        choice=case.choice,
        label=label,
        method=case.options.method,
        target=case.options.target,
        against=case.against,
        baseline=baseline,
        **found.figures(DIGITS),
        precision="float32",
        words=words,
        not_seen=[Stretch(*stretch) for stretch in case.not_seen],
    )
