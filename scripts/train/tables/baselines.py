"""Models that anybody would try first, measured by the same folds: what a version must be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from marctl.build.table_training import HistogramBoosting, Learner, LogisticRegression
from marctl.train.reliability import Floats
from marctl.train.tables.cross_validation import Fold, Procedure, split
from marctl.train.tables.table import LabelledTable
from marctl_handlers.features import Specification

BASELINES: dict[str, Learner] = {
    "logistic regression": LogisticRegression(),
    "histogram boosting": HistogramBoosting(trees=100, learning_rate=0.1, depth=16),
}
"""With scikit-learn's own settings, which limit boosted trees by their leaves, and here by a depth beyond that."""


def baselines(
    specification: Specification, table: LabelledTable, folds: Sequence[Fold], seed: int
) -> dict[str, Floats]:
    """Each one's probabilities of rows held out in turn, free of the specification's monotone marks."""
    free = tuple(msgspec.structs.replace(feature, monotone=None) for feature in specification.features)
    specification, found = Specification(free), {}
    for name, learner in BASELINES.items():
        procedure, held_out = Procedure(specification, [learner], len(folds), seed), np.zeros(len(table))
        for fold in folds:
            rest, here = split(table, fold)
            held_out[fold] = procedure.with_candidate(0, rest).probabilities(here)
        found[name] = held_out
    return found
