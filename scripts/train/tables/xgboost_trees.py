"""Boosted trees by XGBoost. One thread, so that the same rows and seed give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from marctl.build.table_training import XGBoost
from marctl.train.tables.fitted import Floats, Labels
from marctl_handlers.features import EncodedColumn
from marctl_handlers.features.encode import Encoded

REFUSED = "[]<"
"""Characters that XGBoost allows in no column's name."""


class Trees:
    def __init__(self, booster: Any) -> None:
        self._booster = booster

    def probabilities(self, encoded: Encoded) -> Floats:
        found: Floats = self._booster.inplace_predict(encoded, validate_features=False).astype(np.float64)
        return found

    def save(self, path: Path) -> None:
        self._booster.save_model(path)


def fit(learner: XGBoost, encoded: Encoded, labels: Labels, columns: Sequence[EncodedColumn], seed: int) -> Trees:
    names = [column.name for column in columns]
    known = None if any(sign in name for name in names for sign in REFUSED) else names
    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": learner.depth,
        "eta": learner.learning_rate,
        "min_child_weight": learner.min_child_weight,
        "subsample": learner.rows,
        "colsample_bytree": learner.columns,
        "lambda": learner.l2,
        "monotone_constraints": tuple(column.monotone for column in columns),
        "seed": seed,
        "nthread": 1,
    }
    matrix = xgboost.DMatrix(encoded, labels, feature_names=known, nthread=1)
    return Trees(xgboost.train(settings, matrix, learner.trees))
