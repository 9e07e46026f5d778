"""Shapley values of any game: exactly, by every set of players, or over sampled orders of them.

A game is a function of which players are present, given as rows of 0 and 1. Source: Shapley 1953; Strumbelj and
Kononenko 2010, An Efficient Explanation of Individual Classifications using Game Theory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from captum.attr import ShapleyValueSampling
from numpy.typing import NDArray
from torch import Tensor

from marctl_handlers.explanations.outcome import Found

ALWAYS_EXACT = 256
"""Sets of players that are enumerated even if sampling would ask for fewer."""
DEFAULT_SAMPLES = 32
SEED = 0
"""The same request gets the same answer."""


class DeadlinePassed(Exception):
    """No time is left to compute the rest of a game."""


class Game(Protocol):
    """Calls may raise DeadlinePassed."""

    players: int

    def __call__(self, present: Tensor) -> Tensor:
        """The target, (sets,), of sets of players, (sets, players): above 0.5 is present."""


def share_out(game: Game, samples: int, started: float) -> Found:
    """Exact or sampled Shapley values of a game that began at `started`. Raises DeadlinePassed."""
    value, nothing = ends(game)
    if 2**game.players <= max(samples * game.players, ALWAYS_EXACT):
        scores = enumerate_sets(game)
        return Found(scores, value, nothing, time.monotonic() - started, exact=True)
    scores, spread, orders = sample_orders(game, samples)
    return Found(scores, value, nothing, time.monotonic() - started, orders, spread, exact=False)


def ends(game: Game) -> tuple[float, float]:
    """The target with all words, and with none."""
    value, nothing = game(torch.stack([torch.ones(game.players), torch.zeros(game.players)])).tolist()
    return value, nothing


def enumerate_sets(game: Game) -> list[float]:
    """Shapley values from the target of every set of words; Captum's exact form goes through all orders, n! of them."""
    n = game.players
    sets = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    values = game(torch.from_numpy(sets.astype(np.float32))).double().numpy()
    sizes = sets.sum(1)
    weights = np.array([math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)])
    scores = []
    for player in range(n):
        without = np.flatnonzero(sets[:, player] == 0)
        gains = values[without + (1 << player)] - values[without]
        scores.append(float((weights[sizes[without]] * gains).sum()))
    return scores


def sample_orders(game: Game, samples: int) -> tuple[list[float], list[float], int]:
    """Mean scores over random orders, each with its reverse, their standard errors, and the number of orders.

    Raises DeadlinePassed before the second pair of orders is done; what is done later counts.
    """
    method = ShapleyValueSampling(game)
    dice = np.random.default_rng(SEED)
    everything = torch.ones(1, game.players)
    pairs: list[NDArray[np.float64]] = []
    while 2 * len(pairs) < max(samples, 4):
        order = dice.permutation(game.players)

        def both(_: int, __: int, order: NDArray[np.int64] = order) -> Iterator[Sequence[int]]:
            yield order.tolist()
            yield order[::-1].tolist()

        method.permutation_generator = both
        try:
            scores = method.attribute(everything, n_samples=2, perturbations_per_eval=game.players)
        except DeadlinePassed:
            if len(pairs) < 2:
                raise
            break
        pairs.append(scores[0].double().numpy())
    table = np.stack(pairs)
    errors = table.std(0, ddof=1) / math.sqrt(len(pairs))
    return table.mean(0).tolist(), errors.tolist(), 2 * len(pairs)
