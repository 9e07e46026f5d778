"""How far two vectors are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def distance(wanted: Sequence[float], given: Sequence[float]) -> float:
    """Between two vectors of one width, in lengths of the first."""
    one, other = np.asarray(wanted, np.float64), np.asarray(given, np.float64)
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(one)), 1e-12))
