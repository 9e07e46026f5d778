"""Questions, outcomes, answers and settings of tabular tasks."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.settings import Count, Settings
from marctl_handlers.features.specification import LONGEST_CATEGORY

WHOLE = 2**53
"""Integers up to here are exact as floating-point numbers."""
Integer = Annotated[int, Meta(ge=-WHOLE, le=WHOLE)]
Cell = Integer | float | bool | Annotated[str, Meta(max_length=LONGEST_CATEGORY)] | None
Name = Annotated[str, Meta(max_length=100)]
EntityId = Integer | Annotated[str, Meta(min_length=1, max_length=200)]
Output = Literal["probability", "logit"]
Target = Literal["logit", "probability", "value"]
"""What an explanation is about: a label's logit or probability, or the value of a regression."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One row. A feature that is absent, or null, is missing."""

    features: dict[Name, Cell] = {}
    entity: dict[Name, EntityId] = {}
    """Whose stored features to use: those that stand in `features` go first."""


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a wrong label costs, in any unit."""

    false_positive: Annotated[float, Meta(gt=0)]
    """The second label where the first is true."""
    false_negative: Annotated[float, Meta(gt=0)]


class TabularSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of every tabular task."""

    max_instances: Count = 1024
    """Rows in one request; so many take about 50 ms. With more than a quarter of it, a request waits for small ones."""

    @property
    def max_cost(self) -> int:
        return self.max_instances


class ClassificationSettings(TabularSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a classifier's scores become a label."""

    labels: Annotated[tuple[str, ...], Meta(min_length=2)] = ("0", "1")
    """Names of the classes, in the order of the model's outputs; of two, the second is the one that is predicted."""
    output: Output = "probability"
    """What the model gives; a logit is made a probability by the logistic function, or by softmax over several."""
    threshold: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Of two labels, the second is chosen from this probability on; if left out, what `costs` say, or 0.5."""
    costs: Costs | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec reports with the path."""
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` has one name more than once")
        if len(self.labels) > 2 and (self.threshold is not None or self.costs is not None):
            raise ValueError("`threshold` and `costs` belong to two labels; the most probable of several is chosen")
        if self.threshold is not None and self.costs is not None:
            raise ValueError("`costs` say where the threshold lies; remove `threshold` or `costs`")

    @property
    def cut(self) -> float:
        """The probability of the second label from which it costs less (Elkan 2001, The Foundations of Cost-Sensitive
        Learning)."""
        if self.costs is not None:
            return self.costs.false_positive / (self.costs.false_positive + self.costs.false_negative)
        return 0.5 if self.threshold is None else self.threshold


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """What a classifier made of one row: `probabilities` sum to 1, one per label."""

    probabilities: list[float]
    imputed: list[str]
    clipped: list[str]


class Estimated(msgspec.Struct, frozen=True, array_like=True):
    """What a regression model made of one row."""

    value: float
    imputed: list[str]
    clipped: list[str]


class Classified(msgspec.Struct, frozen=True):
    """`prediction`: of two labels, the probability of the second; of more, that of `label`. `confidence`: that of
    `label`. `imputed`: features that were missing or unknown, and what the specification says was used; `clipped`:
    those that were out of range."""

    prediction_id: str
    model: str
    model_version: str
    prediction: float
    label: str
    confidence: float
    probabilities: list[float]
    imputed: list[str]
    clipped: list[str]
    latency_ms: float


class Value(msgspec.Struct, frozen=True):
    """`prediction` is in the unit of what the model was trained on; `imputed` and `clipped` as for classification."""

    prediction_id: str
    model: str
    model_version: str
    prediction: float
    imputed: list[str]
    clipped: list[str]
    latency_ms: float


SAME = 0.001
"""Two versions' probabilities that differ by no more count as equal."""
CLASSIFICATION_COLUMNS = (
    LogColumn("label", "str"),
    LogColumn("prediction", "float", tolerance=SAME),
    LogColumn("confidence", "float", tolerance=SAME),
    LogColumn("probabilities", "floats"),
    LogColumn("imputed", "strs"),
)
REGRESSION_COLUMNS = (LogColumn("prediction", "float"), LogColumn("imputed", "strs"))
