"""A stack's weights, learned from labelled rows that its members were not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from marctl_handlers.tasks.ensemble.combine import LEAST

STEPS = 200
LEAST_ROWS = 50


def stack_weights(members: Sequence[Sequence[Sequence[float]]], labels: Sequence[int]) -> list[float]:
    """One weight per member, at least 0, for which the labels are likeliest (a convex problem).

    members: each one's probabilities by row. Raises ValueError for rows that are too few to tell.
    """
    if len(labels) < LEAST_ROWS:
        raise ValueError(f"{len(labels)} labelled rows; at least {LEAST_ROWS} are needed")
    logs = torch.stack([padded(rows) for rows in members])
    places = torch.tensor(labels)
    # The weights' logarithms are sought, so that no weight is negative: a member never speaks against itself.
    found = torch.zeros(len(members), dtype=torch.float64).sub(math.log(len(members))).requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = (found.exp()[:, None, None] * logs).sum(0)
        value = torch.nn.functional.cross_entropy(scores, places)
        value.backward()
        return value

    optimizer.step(loss)
    weights: list[float] = found.detach().exp().tolist()
    if not all(map(math.isfinite, weights)):
        raise ValueError("no weights fit these rows; are the labels right?")
    return weights


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Log-probabilities, (rows, classes); places that a row does not have are far below all others."""
    longest = max(map(len, rows))
    values = torch.full((len(rows), longest), -1e9, dtype=torch.float64)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row, dtype=torch.float64).clamp_min(LEAST).log()
    return values
