"""Rows of features to a label with its probability: fraud or not, good or bad, one of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.calibration import METHODS, Temperature
from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import Settings
from marctl_handlers.tasks.tabular.explain.answer import ExplainedClassified
from marctl_handlers.tasks.tabular.schema import (
    CLASSIFICATION_COLUMNS,
    ClassificationSettings,
    Classified,
    Question,
    Scored,
    Target,
)
from marctl_handlers.tasks.tabular.task import DECIMALS, Tabular, marks_of, opened, outputs_of

SMALLEST_SHARE = 1e-9
"""A probability nearer to 0 or 1 has this one's logit, about 21."""
TINIEST_SHARE = 1e-300
"""In place of 0, whose logarithm is no number."""
ROUNDING = 1e-4
"""By how much probabilities in float32 may leave 0 to 1, or miss a sum of 1."""


class Classification(Tabular[Question, Scored]):
    """Answers each row with a label."""

    settings: ClassificationSettings
    settings_type: ClassVar[type[Settings]] = ClassificationSettings
    answer_type: ClassVar[type[msgspec.Struct]] = Classified
    explained_type: ClassVar[type[msgspec.Struct]] = ExplainedClassified
    targets: ClassVar[tuple[Target, ...]] = ("logit", "probability")
    log_columns: ClassVar[tuple[LogColumn, ...]] = CLASSIFICATION_COLUMNS
    gives_probabilities_of: Literal["choices", "event"] | None = "event"

    def __init__(self, settings: ClassificationSettings, device: str = "cpu") -> None:
        super().__init__(settings, device)
        if len(settings.labels) > 2:
            self.gives_probabilities_of = "choices"

    def load(self, folder: Path) -> None:
        super().load(folder)
        refuse_outputs(outputs_of(self.features, self.model), self.settings.labels)
        if self.calibration is not None and not isinstance(self.calibration, METHODS[str(self.gives_probabilities_of)]):
            raise LoadError("a temperature calibrates three labels and more, the other methods two; calibrate it anew")

    @property
    def labels(self) -> Sequence[str]:
        return self.settings.labels

    def explained_label(self, outcome: Scored) -> int:
        """Of two the second, which `prediction` is about; of more the chosen one."""
        return 1 if len(outcome.probabilities) == 2 else self.chosen(outcome.probabilities)

    def target(self, scores: NDArray[Any], target: Target, label: int | None) -> NDArray[np.float64]:
        """A probability after calibration, a logit before it."""
        if target == "probability":
            return self.shares(scores)[:, label or 0]
        shares = probabilities(scores, logits=self.settings.output == "logit")[:, label or 0]
        inside = shares.clip(SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        logit: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
        return logit

    @property
    def classes(self) -> Sequence[str]:
        return self.settings.labels

    @classmethod
    def with_probabilities(cls, outcomes: Sequence[Scored], probabilities: Sequence[float]) -> Scored:
        """What was imputed or clipped for any of them."""
        imputed = dict.fromkeys(name for outcome in outcomes for name in outcome.imputed)
        clipped = dict.fromkeys(name for outcome in outcomes for name in outcome.clipped)
        return Scored(list(probabilities), list(imputed), list(clipped))

    def outcomes(self, scores: NDArray[Any], imputed: list[list[str]], clipped: list[list[str]]) -> list[Scored]:
        found = self.shares(scores).tolist()
        return [Scored(*row) for row in zip(found, imputed, clipped, strict=True)]

    def shares(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (rows, labels)."""
        found, calibration = probabilities(scores, logits=self.settings.output == "logit"), self.calibration
        if isinstance(calibration, Temperature):
            return softmax(np.log(found.clip(TINIEST_SHARE)) / calibration.of(found.shape[1]))
        if calibration is not None:
            found[:, 1] = calibration(found[:, 1])
            found[:, 0] = 1 - found[:, 1]
        return found

    def probabilities(self, found: Scored | Classified) -> list[float]:
        return found.probabilities

    def label_index(self, question: Question, label: str) -> int:
        return self.settings.labels.index(label)

    def answer(self, question: Question, outcome: Scored, stamp: Stamp) -> Classified:
        kept = self.log_values(question, outcome)
        return Classified(
            prediction_id=stamp.prediction_id,
            model=stamp.model,
            model_version=stamp.version,
            prediction=kept["prediction"],
            label=kept["label"],
            confidence=kept["confidence"],
            probabilities=kept["probabilities"],
            imputed=outcome.imputed,
            clipped=outcome.clipped,
            latency_ms=stamp.latency_ms,
        )

    def log_values(self, question: Question, outcome: Scored) -> Mapping[str, Any]:
        found = [round(share, DECIMALS) for share in outcome.probabilities]
        index = self.chosen(outcome.probabilities)
        prediction = found[1] if len(found) == 2 else found[index]
        return {
            "label": self.settings.labels[index],
            "prediction": prediction,
            "confidence": found[index],
            "probabilities": found,
            "imputed": outcome.imputed,
        }

    def chosen(self, shares: Sequence[float]) -> int:
        """The label's place."""
        if len(shares) == 2:
            return int(shares[1] >= self.settings.cut)
        return max(range(len(shares)), key=shares.__getitem__)

    def fits(self, question: Question, outcome: Scored) -> bool:
        shares = outcome.probabilities
        return len(shares) == len(self.settings.labels) and min(shares) >= 0 and abs(math.fsum(shares) - 1) < 1e-6

    @classmethod
    def show(cls, request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """The label with its probability, and what was imputed or clipped."""
        return f"{answer['label']}  {100 * answer['confidence']:.1f} %{marks_of(answer)}"

    @classmethod
    def suggest(cls, folder: Path) -> dict[str, Any]:
        """Names for the classes of a model that has more than two."""
        outputs = outputs_of(*opened(folder, threads=1))
        return {"labels": [str(i) for i in range(outputs)]} if outputs > 2 else {}

    @classmethod
    def reference(cls, folder: Path, requests: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
        from marctl_handlers.tasks.tabular.reference import plain_scores

        assert isinstance(settings, ClassificationSettings)
        found = probabilities(plain_scores(folder, requests), logits=settings.output == "logit")
        return [{"probabilities": shares} for shares in found.tolist()]


def probabilities(scores: NDArray[Any], *, logits: bool) -> NDArray[np.float64]:
    """Shape (rows, labels), each row's sum 1. Raises ArithmeticError for what can be no probability."""
    found = scores.astype(np.float64)
    if logits:
        return softmax(np.hstack([np.zeros_like(found), found]) if found.shape[1] == 1 else found)
    if found.size and (found.min() < -ROUNDING or found.max() > 1 + ROUNDING):
        raise ArithmeticError(
            f"the model gave {found.min():g} to {found.max():g} for probabilities; `output: logit` in the recipe makes "
            "probabilities of logits"
        )
    if found.shape[1] == 1:
        found = np.hstack([1 - found, found])
    found = found.clip(0, 1)
    total = found.sum(axis=1, keepdims=True)
    if (abs(total - 1) > ROUNDING * found.shape[1]).any():
        raise ArithmeticError(f"the model's probabilities of a row add up to {total.min():g}, expected 1")
    shares: NDArray[np.float64] = found / total
    return shares


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def refuse_outputs(outputs: int, labels: Sequence[str]) -> None:
    """Raise LoadError unless the model's outputs can be of these labels: one for the second of two, or one each."""
    if outputs != len(labels) and (outputs, len(labels)) != (1, 2):
        raise LoadError(
            f"the model gives {outputs} numbers a row, `labels` names {len(labels)} ({', '.join(labels)}); "
            "name every class, in the order of the model's outputs, or use the task tabular_regression"
        )
