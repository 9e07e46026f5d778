"""A recipe's `table_training`: how `marctl train` makes the model of a version that scores rows of a table."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1, le=10_000)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(ge=0)]


class Learner(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """One way to learn, with its settings. `suffix` is that of the model's file."""

    suffix: ClassVar[str]


class XGBoost(Learner, frozen=True, tag="xgboost"):
    """Boosted trees by XGBoost; the specification's monotone marks are enforced."""

    suffix: ClassVar[str] = ".ubj"
    trees: Count = 300
    learning_rate: Rate = 0.05
    depth: Annotated[int, Meta(ge=1, le=16)] = 3
    min_child_weight: Weight = 5.0
    rows: Share = 0.8
    """Drawn for each tree."""
    columns: Share = 0.8
    l2: Weight = 1.0


class Network(Learner, frozen=True, tag="pytorch"):
    """The mean log-odds of several small networks by PyTorch, which differ in their first weights."""

    suffix: ClassVar[str] = ".pt"
    networks: Annotated[int, Meta(ge=1, le=100)] = 5
    width: Annotated[int, Meta(ge=1, le=4_096)] = 32
    layers: Annotated[int, Meta(ge=1, le=16)] = 1
    epochs: Count = 30
    batch: Count = 128
    learning_rate: Rate = 3e-3
    weight_decay: Weight = 0.01
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1


class LogisticRegression(Learner, frozen=True, tag="logistic_regression"):
    """scikit-learn's; `c` is the inverse of its L2 penalty."""

    suffix: ClassVar[str] = ".onnx"
    c: Annotated[float, Meta(gt=0)] = 1.0


class HistogramBoosting(Learner, frozen=True, tag="histogram_boosting"):
    """Boosted trees by scikit-learn; the specification's monotone marks are enforced."""

    suffix: ClassVar[str] = ".onnx"
    trees: Count = 150
    learning_rate: Rate = 0.05
    depth: Annotated[int, Meta(ge=1, le=16)] = 3
    min_rows: Count = 20
    """Of a leaf."""
    l2: Weight = 0.0


class TableTraining(Struct, frozen=True, forbid_unknown_fields=True):
    """What to learn from which columns, and how it is measured."""

    target: str
    """The column that is predicted; its values are the recipe's `labels`."""
    candidates: Annotated[list[XGBoost | Network | LogisticRegression | HistogramBoosting], Meta(min_length=1)]
    """Of several, the one with the least log loss in cross-validation is used."""
    features: str = "features.yaml"
    """The feature specification, relative to the recipe; what it leaves open is learned from the table."""
    seed: int = 1
    folds: Annotated[int, Meta(ge=2, le=20)] = 5
    """Of the cross-validation that the figures come from, and of that within each fold, which chooses the candidate."""
    groups: dict[str, list[float]] = {}
    """By numeric feature, where its groups begin: [30, 40] makes `below 30`, `30 to 40` and `40 and above`. Protected
    features of the specification are reported by group in any case, numeric ones by quarters."""
    baselines: dict[str, float] = {}
    """Areas under the ROC curve that others report for this data; the model card quotes them."""

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec reports with the path."""
        if len({candidate.suffix for candidate in self.candidates}) > 1:
            raise ValueError("the candidates' models are files of several kinds; a version has one")
        for name, edges in self.groups.items():
            if not edges or any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"groups.{name}: expected numbers, each above the one before")

    @property
    def suffix(self) -> str:
        """Of the model's file."""
        return self.candidates[0].suffix
