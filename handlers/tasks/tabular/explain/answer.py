"""The part of an answer that explains it."""

from __future__ import annotations

import msgspec

from marctl_handlers.tasks.tabular.explain.request import Method
from marctl_handlers.tasks.tabular.schema import Classified, Target, Value

DIGITS = 6


class FeatureScore(msgspec.Struct, frozen=True, omit_defaults=True):
    """A feature's contribution to the target, in the target's unit; a negative score counts against it.

    `value` is what the model was given: after filling and clipping, before scaling; null for a gap that it knows.
    """

    feature: str
    value: float | int | bool | str | None
    score: float
    unit: str = ""
    standard_error: float | None = None
    imputed: bool = False
    clipped: bool = False
    protected: bool = False


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Scores sum to `value` - `baseline_value` + `delta`. `reasons` are the heaviest features in words."""

    label: str = ""
    method: Method
    target: Target
    baseline: str
    value: float
    baseline_value: float
    delta: float
    delta_bound: float
    complete: bool
    """Whether |delta| is within its bound."""
    steps: int | None = None
    exact: bool | None = None
    compute_ms: float
    features: list[FeatureScore]
    reasons: list[str]


class ExplainedClassified(Classified, frozen=True, kw_only=True):
    """A classification's answer with its explanations."""

    explanations: list[Explanation]


class ExplainedValue(Value, frozen=True, kw_only=True):
    """A regression's answer with its explanations."""

    explanations: list[Explanation]
