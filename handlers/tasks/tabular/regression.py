"""Rows of features to a number: a price, a demand, a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import Settings
from marctl_handlers.tasks.tabular.explain.answer import ExplainedValue
from marctl_handlers.tasks.tabular.schema import REGRESSION_COLUMNS, Estimated, Question, Target, Value
from marctl_handlers.tasks.tabular.task import DECIMALS, Tabular, marks_of, outputs_of


class Regression(Tabular[Question, Estimated]):
    """Answers each row with a number."""

    answer_type: ClassVar[type[msgspec.Struct]] = Value
    explained_type: ClassVar[type[msgspec.Struct]] = ExplainedValue
    targets: ClassVar[tuple[Target, ...]] = ("value",)
    log_columns: ClassVar[tuple[LogColumn, ...]] = REGRESSION_COLUMNS

    def load(self, folder: Path) -> None:
        super().load(folder)
        outputs = outputs_of(self.features, self.model)
        if outputs != 1:
            raise LoadError(f"the model gives {outputs} numbers a row, expected 1; a classifier has the task tabular")

    def explained_label(self, outcome: Estimated) -> None:
        return None

    def target(self, scores: NDArray[Any], target: Target, label: int | None) -> NDArray[np.float64]:
        found: NDArray[np.float64] = scores[:, 0].astype(np.float64)
        return found

    def outcomes(self, scores: NDArray[Any], imputed: list[list[str]], clipped: list[list[str]]) -> list[Estimated]:
        return [Estimated(*row) for row in zip(scores[:, 0].astype(np.float64).tolist(), imputed, clipped, strict=True)]

    def answer(self, question: Question, outcome: Estimated, stamp: Stamp) -> Value:
        return Value(
            prediction_id=stamp.prediction_id,
            model=stamp.model,
            model_version=stamp.version,
            prediction=round(outcome.value, DECIMALS),
            imputed=outcome.imputed,
            clipped=outcome.clipped,
            latency_ms=stamp.latency_ms,
        )

    def log_values(self, question: Question, outcome: Estimated) -> Mapping[str, Any]:
        return {"prediction": round(outcome.value, DECIMALS), "imputed": outcome.imputed}

    def fits(self, question: Question, outcome: Estimated) -> bool:
        return math.isfinite(outcome.value)

    @classmethod
    def show(cls, request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """The value, and what was imputed or clipped."""
        return f"{answer['prediction']:,.6g}{marks_of(answer)}"

    @classmethod
    def reference(cls, folder: Path, requests: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
        from marctl_handlers.tasks.tabular.reference import plain_scores

        return [{"prediction": value} for value in plain_scores(folder, requests)[:, 0].astype(np.float64).tolist()]
