"""An explanation is told at a terminal."""

from __future__ import annotations

from typing import Any

import click

from marctl.cli.explained import explained

FOUND: dict[str, Any] = {
    "label": "bad",
    "method": "tree_shap",
    "target": "logit",
    "baseline": "training rows",
    "value": 1.25,
    "baseline_value": 0.5,
    "delta": 0.0,
    "complete": True,
    "compute_ms": 2.4,
    "features": [
        {"feature": "age", "value": 30, "score": 0.25, "protected": True},
        {"feature": "income", "value": None, "score": 1.0, "imputed": True, "standard_error": 0.1},
        {"feature": "amount", "value": 9000.5, "score": -0.5, "clipped": True},
        {"feature": "married", "value": True, "score": 0.0},
    ],
    "reasons": ["income, which is missing or unknown, raises the odds of bad by a factor of 2.72"],
}


def test_features_are_told_by_weight_with_their_reasons_and_marks() -> None:
    assert click.unstyle(explained({}, FOUND)).splitlines() == [
        "why bad",
        "  income, which is missing or unknown, raises the odds of bad by a factor of 2.72",
        f"  income = missing    +1.000 ± 0.100  {'█' * 16}  (imputed)",
        f"  amount = 9,000.5    -0.500  {'█' * 8}  (clipped)",
        f"  age = 30            +0.250  {'█' * 4}  (protected)",
        "  married = true      +0.000  █",
        "  tree_shap, logit from 0.500 to 1.250, compared with training rows, 2 ms",
    ]


def test_scores_that_miss_the_change_are_told() -> None:
    assert "the scores miss that change by 0.700" in explained({}, FOUND | {"complete": False, "delta": -0.7})
