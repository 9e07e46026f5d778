"""Several versions' explanations of one target as their weighted sum: every method's scores are linear in the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from marctl_handlers.explanations.outcome import LEAST_CHANGE, TOLERANCE


def summed_figures(parts: Sequence[Any], weights: Sequence[float], digits: int) -> dict[str, Any]:
    """The figures that explanations of every task have: of the sum, from those of its parts."""
    value, baseline_value, delta = (
        summed((getattr(part, name) for part in parts), weights) for name in ("value", "baseline_value", "delta")
    )
    bound = TOLERANCE * max(abs(value - baseline_value), LEAST_CHANGE)
    return {
        "value": round(value, digits),
        "baseline_value": round(baseline_value, digits),
        "delta": round(delta, digits),
        "delta_bound": round(bound, digits),
        "complete": abs(delta) <= bound,
        "steps": max((part.steps for part in parts if part.steps is not None), default=None),
        "exact": None if parts[0].exact is None else all(part.exact for part in parts),
        "compute_ms": round(sum(part.compute_ms for part in parts), 3),
    }


def summed_scores(same: Sequence[tuple[Any, float]], digits: int) -> dict[str, Any]:
    """Of one word or feature, each version's score with its weight. Sampling errors are independent: their squares add
    up."""
    errors = [weight * one.standard_error for one, weight in same if one.standard_error is not None]
    return {
        "score": round(math.fsum(weight * one.score for one, weight in same), digits),
        "standard_error": round(math.hypot(*errors), digits) if errors else None,
    }


def summed(values: Any, weights: Sequence[float]) -> float:
    return math.fsum(weight * value for value, weight in zip(values, weights, strict=True))
