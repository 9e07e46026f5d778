"""The heaviest features in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from marctl_handlers.tasks.tabular.explain.answer import FeatureScore
from marctl_handlers.tasks.tabular.schema import Target

MOST = 3
LEAST_SHARE = 0.05
"""Of the sum of all scores, signs left out; what weighs less is no reason."""
LARGEST_FACTOR = 1000.0


def reasons_of(scores: Sequence[FeatureScore], target: Target, label: str) -> list[str]:
    """`income of 1,200 EUR lowers the odds of bad by a factor of 1.8`, the heaviest first."""
    total = sum(abs(one.score) for one in scores)
    ranked = sorted(scores, key=lambda one: -abs(one.score))[:MOST]
    return [
        f"{named(one)} {effect(one.score, target, label)}" for one in ranked if abs(one.score) > LEAST_SHARE * total
    ]


def named(one: FeatureScore) -> str:
    """The feature with the value that the model was given."""
    value = shown(one)
    if one.imputed:
        stand_in = f" ({value} stands in)" if value else ""
        return f"{one.feature}, which is missing or unknown{stand_in},"
    clipped = ", to which it was clipped," if one.clipped else ""
    return f"{one.feature} of {value}{clipped}"


def shown(one: FeatureScore) -> str:
    """`1,200 EUR`, `true`, `rent`; empty for a gap."""
    value = one.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else f"{value:,.10g}"
    return f"{text} {one.unit}" if one.unit else text


def effect(score: float, target: Target, label: str) -> str:
    verb = "raises" if score > 0 else "lowers"
    if target == "logit":
        if abs(score) > math.log(LARGEST_FACTOR):
            return f"{verb} the odds of {label} by a factor of more than {LARGEST_FACTOR:,.0f}"
        return f"{verb} the odds of {label} by a factor of {math.exp(abs(score)):.3g}"
    if target == "probability":
        return f"{verb} the probability of {label} by {100 * abs(score):.3g} percentage points"
    return f"{verb} the prediction by {abs(score):,.4g}"
