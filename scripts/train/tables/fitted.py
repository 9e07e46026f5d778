"""What training needs of a trained model, whichever library it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.features.encode import Encoded

Floats = NDArray[np.float64]
Labels = NDArray[np.intp]


class Fitted(Protocol):
    """A trained model."""

    def probabilities(self, encoded: Encoded) -> Floats:
        """Of the second label, shape (rows,)."""

    def save(self, path: Path) -> None:
        """As the worker's runtime loads it; the same bytes for the same model."""
