"""Gradient-boosted trees by XGBoost, from a file of `save_model` (JSON or UBJ)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.errors import LoadError
from marctl_handlers.tasks.tabular.runtimes.runtime import Encoded, by_row, lacks, unreadable

ADDITIVE = ("binary:logistic", "binary:logitraw", "multi:softprob", "reg:squarederror", "reg:absoluteerror")
"""Objectives whose margin is a logit, or the value itself: a sum of the trees that TreeSHAP can share out."""


class XGBoostRuntime:
    """`inplace_predict`, which reads the encoded matrix where it is: half the time of a DMatrix made for each batch."""

    def __init__(self, path: Path, threads: int, columns: Sequence[str]) -> None:
        """`columns`: the encoded matrix' names. Raises LoadError."""
        try:
            import xgboost
        except ImportError as err:
            raise lacks("xgboost-cpu", "xgboost", err) from err
        self.name = f"xgboost {xgboost.__version__}"
        self.booster = xgboost.Booster()
        try:
            self.booster.load_model(path)
        except (xgboost.core.XGBoostError, ValueError) as err:
            raise unreadable(path, "XGBoost model", err) from err
        self.booster.set_param({"nthread": threads})
        self.columns: int | None = self.booster.num_features()
        refuse_order(self.booster.feature_names, columns)
        self.objective = str(json.loads(self.booster.save_config())["learner"]["objective"]["name"])
        self.additive = self.objective in ADDITIVE
        stopped = self.booster.attr("best_iteration")
        self.rounds = (0, int(stopped) + 1) if stopped is not None else (0, 0)
        """Trees to use: with early stopping those up to the best iteration, as XGBoost's scikit-learn classes do."""
        self._threads = threads
        self.outputs = self.margins(np.zeros((1, self.booster.num_features()), np.float32)).shape[1]

    def scores(self, encoded: Encoded) -> NDArray[Any]:
        found: NDArray[Any] = self.booster.inplace_predict(
            encoded, iteration_range=self.rounds, missing=np.nan, validate_features=False
        )
        return by_row(found)

    def margins(self, encoded: Encoded) -> NDArray[Any]:
        """The sums of the trees, before they are made probabilities; shape (rows, outputs)."""
        found: NDArray[Any] = self.booster.inplace_predict(
            encoded, iteration_range=self.rounds, predict_type="margin", missing=np.nan, validate_features=False
        )
        return by_row(found)

    def contributions(self, encoded: Encoded) -> NDArray[Any]:
        """Each column's share of the margin, and last the margin of no column; shape (rows, outputs, columns + 1)."""
        import xgboost

        matrix = xgboost.DMatrix(encoded, nthread=self._threads)
        found: NDArray[Any] = self.booster.predict(
            matrix, pred_contribs=True, iteration_range=self.rounds, validate_features=False
        )
        return found.reshape(len(encoded), -1, encoded.shape[1] + 1)


def refuse_order(names: Sequence[str] | None, columns: Sequence[str]) -> None:
    """Raise LoadError where the model knows the same columns in another order."""
    if names and set(names) == set(columns) and list(names) != list(columns):
        moved = next(i for i, (one, other) in enumerate(zip(names, columns, strict=True)) if one != other)
        raise LoadError(
            f"column {moved} of the model is {names[moved]!r}, that of the feature specification {columns[moved]!r}; "
            "put the features into the model's order"
        )
