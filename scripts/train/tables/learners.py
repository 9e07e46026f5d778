"""Learners by what the recipe names; each library is imported where it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marctl.build.table_training import HistogramBoosting, Learner, LogisticRegression, Network
from marctl.core.errors import UserError
from marctl.core.extras import install
from marctl.train.tables.fitted import Fitted, Labels
from marctl_handlers.features import EncodedColumn
from marctl_handlers.features.encode import Encoded


def fit(learner: Learner, encoded: Encoded, labels: Labels, columns: Sequence[EncodedColumn], seed: int) -> Fitted:
    """Train on rows, (rows, columns), and their labels, 0 or 1. Raises UserError where the library is not installed."""
    chosen: Any = learner
    try:
        if isinstance(learner, Network):
            from marctl.train.tables import torch_network

            return torch_network.fit(chosen, encoded, labels, columns, seed)
        if isinstance(learner, LogisticRegression | HistogramBoosting):
            from marctl.train.tables import sklearn_onnx

            return sklearn_onnx.fit(chosen, encoded, labels, columns, seed)
        from marctl.train.tables import xgboost_trees

        return xgboost_trees.fit(chosen, encoded, labels, columns, seed)
    except ImportError as err:
        raise UserError(f"training needs {err.name}, which is not here: {install('train')}") from err
