"""Shapley values of any model: a feature that is absent takes its value from the background's rows, one by one.

The target of a set of features is its mean over these rows (interventional expectations; Janzing et al. 2020,
arXiv:1910.13413).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marctl_handlers.explanations.outcome import Found
from marctl_handlers.explanations.shapley import DEFAULT_SAMPLES, DeadlinePassed, share_out
from marctl_handlers.features.encode import Encoded

ROWS_PER_PASS = 8192
Model = Callable[[Encoded], NDArray[np.float64]]
"""From encoded rows to one target each."""


class RowGame:
    """One row's target as a function of which of its features are present."""

    def __init__(
        self, model: Model, row: Encoded, background: Encoded, feature_of: NDArray[np.intp], deadline: float = math.inf
    ) -> None:
        """row: shape (columns,). background: (rows, columns). feature_of: each column's feature, counted from 0."""
        self.players = int(feature_of.max()) + 1
        self._model, self._row, self._background = model, row, background
        self._feature_of = feature_of
        self._deadline = deadline

    def __call__(self, present: Tensor) -> Tensor:
        """The mean target, (sets,), of sets of features, (sets, players). Raises DeadlinePassed."""
        columns = (present > 0.5).numpy()[:, self._feature_of]
        step = max(ROWS_PER_PASS // len(self._background), 1)
        found: list[NDArray[np.float64]] = []
        for start in range(0, len(columns), step):
            if found and time.monotonic() > self._deadline:
                raise DeadlinePassed
            shown = columns[start : start + step, None, :]
            rows = np.where(shown, self._row, self._background[None]).reshape(-1, len(self._row))
            found.append(self._model(rows).reshape(-1, len(self._background)).mean(axis=1))
        return torch.from_numpy(np.concatenate(found))


def shapley(game: RowGame, samples: int | None) -> Found | None:
    """Each feature's share of the target's change; None if the deadline came before the least was done."""
    try:
        return share_out(game, samples or DEFAULT_SAMPLES, time.monotonic())
    except DeadlinePassed:
        return None
