"""Exact Shapley values of trees, by XGBoost's own TreeSHAP (Lundberg et al. 2020, doi:10.1038/s42256-019-0138-9).

What is absent is averaged over the training rows, as the trees' nodes have counted them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from marctl_handlers.explanations.outcome import Found
from marctl_handlers.features import Features
from marctl_handlers.features.encode import Encoded
from marctl_handlers.tasks.tabular.runtimes.xgboost_runtime import XGBoostRuntime

BASELINE = "training rows"


def tree_shap(model: XGBoostRuntime, features: Features, encoded: Encoded, outputs: Sequence[int]) -> list[Found]:
    """One a row, of the margin of one of its outputs; the columns of a feature are summed."""
    started = time.monotonic()
    found, margins = model.contributions(encoded), model.margins(encoded)
    each_s = (time.monotonic() - started) / max(len(encoded), 1)
    scores = features.sum_by_feature(found[:, :, :-1])
    return [
        Found(
            scores[i, output].tolist(),
            float(margins[i, output]),
            float(found[i, output, -1]),
            each_s,
            exact=True,
        )
        for i, output in enumerate(outputs)
    ]
