"""Figures of probabilities beside true labels, and of the decisions that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl.train.ranking import area_interval, difference_interval, mean_area
from marctl.train.reliability import Floats, Reliability, diagram
from marctl.train.tables.cross_validation import Fold, judged


def figures(probability: Floats, labels: NDArray[np.intp], folds: Sequence[Fold]) -> dict[str, Any]:
    """Area under the ROC curve, Brier score, calibration error and log loss, with half the widths of 95 % intervals."""
    hit = labels.astype(float)
    reliability = Reliability.of(judged(probability, labels)).record()
    return {
        "auc": round(mean_area(probability, hit, folds), 4),
        "auc_interval_95": round(area_interval(probability, hit, folds), 4),
        **reliability,
        "brier_interval_95": round(brier_interval(probability, hit), 4),
    }


def brier_interval(probability: Floats, hit: Floats) -> float:
    errors = (probability - hit) ** 2
    return 1.96 * float(errors.std(ddof=1)) / float(np.sqrt(len(errors)))


def beside(
    others: Mapping[str, Floats], probability: Floats, labels: NDArray[np.intp], folds: Sequence[Fold]
) -> dict[str, Any]:
    """Of each of the others: its figures, and how much larger the version's area under the ROC curve is."""
    hit = labels.astype(float)
    own = mean_area(probability, hit, folds)
    return {
        name: {
            "auc": round(mean_area(other, hit, folds), 4),
            "auc_gain": round(own - mean_area(other, hit, folds), 4),
            "auc_gain_interval_95": round(difference_interval(probability, other, hit, folds), 4),
            "brier": round(float(((other - hit) ** 2).mean()), 4),
        }
        for name, other in others.items()
    }


def decisions(
    probability: Floats, labels: NDArray[np.intp], cut: float, costs: tuple[float, float] | None
) -> dict[str, Any]:
    """What predicting the second label from `cut` on does; `costs`: of a false positive and of a false negative."""
    predicted, came = probability >= cut, labels == 1
    record: dict[str, Any] = {
        "threshold": round(cut, 4),
        "predicted_share": round(float(predicted.mean()), 4),
        "false_positive_rate": round(float(predicted[~came].mean()), 4),
        "false_negative_rate": round(float((~predicted)[came].mean()), 4),
    }
    if costs is not None:
        record |= {
            "cost_per_row": cost(predicted, came, costs),
            "cost_per_row_at_half": cost(probability >= 0.5, came, costs),
            "cost_per_row_of_never": cost(np.zeros_like(came), came, costs),
            "cost_per_row_of_always": cost(np.ones_like(came), came, costs),
        }
    return record


def cost(predicted: NDArray[np.bool_], came: NDArray[np.bool_], costs: tuple[float, float]) -> float:
    """The mean over rows."""
    return round(float((costs[0] * (predicted & ~came) + costs[1] * (~predicted & came)).mean()), 4)


def reliability_table(probability: Floats, labels: NDArray[np.intp]) -> list[dict[str, Any]]:
    """The points of a reliability diagram."""
    return [
        {
            "rows": one.rows,
            "probability": round(one.confidence, 4),
            "share": round(one.share, 4),
            "chance": round(one.spread, 4),
        }
        for one in diagram(judged(probability, labels))
    ]
