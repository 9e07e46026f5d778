"""Features that are computed from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.features.specification import LARGEST, Feature


def derive(feature: Feature, parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """One value a row from its parts, shape (parts, rows); NaN where a part is, and where there is no finite result."""
    assert feature.derived is not None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        match feature.derived.operation:
            case "ratio":
                made = parts[0] / parts[1]
            case "difference":
                made = parts[0] - parts[1]
            case "sum":
                made = parts.sum(axis=0)
            case "product":
                made = parts.prod(axis=0)
    return np.where(np.abs(made) <= LARGEST, made, np.nan)
