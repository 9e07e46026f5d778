"""scikit-learn's models, written as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression as Regression
from threadpoolctl import threadpool_limits

from marctl.build.table_training import HistogramBoosting, LogisticRegression
from marctl.train.tables.fitted import Floats, Labels
from marctl_handlers.features import EncodedColumn
from marctl_handlers.features.encode import Encoded

MOST_ITERATIONS = 10_000
GRAPH = "classifier"
"""A name of the exporter's own would differ from file to file."""


class Estimator:
    def __init__(self, estimator: Any, n_columns: int) -> None:
        self._estimator, self._n_columns = estimator, n_columns

    def probabilities(self, encoded: Encoded) -> Floats:
        with threadpool_limits(1):
            found: Floats = self._estimator.predict_proba(encoded)[:, 1].astype(np.float64)
        return found

    def save(self, path: Path) -> None:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        inputs = [("features", FloatTensorType([None, self._n_columns]))]
        options = {id(self._estimator): {"zipmap": False}}
        model = convert_sklearn(self._estimator, name=GRAPH, initial_types=inputs, options=options)
        path.write_bytes(model.SerializeToString(deterministic=True))


def fit(
    learner: LogisticRegression | HistogramBoosting,
    encoded: Encoded,
    labels: Labels,
    columns: Sequence[EncodedColumn],
    seed: int,
) -> Estimator:
    with threadpool_limits(1):  # the threads of small tables wait for each other more than they work
        return Estimator(estimator_of(learner, columns, seed).fit(encoded, labels), len(columns))


def estimator_of(learner: LogisticRegression | HistogramBoosting, columns: Sequence[EncodedColumn], seed: int) -> Any:
    if isinstance(learner, LogisticRegression):
        return Regression(C=learner.c, max_iter=MOST_ITERATIONS)
    return HistGradientBoostingClassifier(
        learning_rate=learner.learning_rate,
        max_iter=learner.trees,
        max_depth=learner.depth,
        min_samples_leaf=learner.min_rows,
        l2_regularization=learner.l2,
        monotonic_cst=[column.monotone for column in columns],
        early_stopping=False,
        random_state=seed,
    )
