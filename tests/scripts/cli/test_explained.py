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
        f"  amount = 9,000.5    -0.500  {'▒' * 8}  (clipped)",
        f"  age = 30            +0.250  {'█' * 4}  (protected)",
        "  married = true      +0.000  █",
        "  █ speaks for it, ▒ against it; a figure is how far it moves the logit",
        "  tree_shap, logit from 0.500 to 1.250, compared with training rows, 2 ms",
    ]


def test_scores_that_miss_the_change_are_told() -> None:
    assert "the scores miss that change by 0.700" in explained({}, FOUND | {"complete": False, "delta": -0.7})


def words(own: float) -> dict[str, Any]:
    """An explanation of choice 1, whose own word scores `own`."""
    found = {key: value for key, value in FOUND.items() if key not in ("features", "reasons", "baseline")}
    heavy = {"field": "question", "text": "bread", "start": 5, "end": 10, "score": 2.0}
    other = {"field": "choices[0]", "text": "pillow", "start": 2, "end": 8, "score": -1.0}
    choice = {"field": "choices[1]", "text": "knife", "start": 2, "end": 7, "score": own}
    return found | {"choice": 1, "label": "a knife", "words": [heavy, other, choice]}


TEXTS = {"question": "cut, bread?", "choices[0]": "a pillow", "choices[1]": "a knife"}


def test_a_word_of_the_choice_that_counts_against_it_is_explained() -> None:
    told = " ".join(click.unstyle(explained(TEXTS, words(-0.5))).split())
    assert "knife -0.500 ▒▒▒▒" in told
    assert "A word of the explained choice counts against it where" in told
    assert "moves this choice's logit" in told


def test_where_no_word_of_the_choice_counts_against_it_nothing_is_said_of_that() -> None:
    assert "counts against it" not in explained(TEXTS, words(0.5))
