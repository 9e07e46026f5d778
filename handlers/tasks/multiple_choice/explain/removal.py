"""Methods that remove words and observe the target: Shapley values and occlusion.

Both treat a case as a cooperative game whose players are its words: a vector with 1 for each word that is present.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from captum.attr import Occlusion, ShapleyValueSampling
from numpy.typing import NDArray
from torch import Tensor

from handlers.tasks.multiple_choice.explain.cases import SPECIAL, Case, CaseRow
from handlers.tasks.multiple_choice.explain.forward import WordModel, fitting
from handlers.tasks.multiple_choice.explain.outcome import Found
from handlers.tasks.multiple_choice.explain.request import DEFAULT_SAMPLES

ALWAYS_EXACT = 256
"""Sets of words that are enumerated even if sampling would ask for fewer."""
SEED = 0
"""The same request gets the same answer."""


class DeadlinePassed(Exception):
    """No time is left to compute the rest of a case."""


class Game:
    """The target as a function of which words are present; each row's logit is computed once per set of its words.

    Calls raise DeadlinePassed once the deadline (time.monotonic seconds) is over.
    """

    def __init__(self, model: WordModel, case: Case, tokens_per_pass: int, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.words = len(case.words)
        self._model = model
        self._target = case.options.target
        self._tokens_per_pass = tokens_per_pass
        self._rows = [GameRow(model, case, row) for row in case.rows]

    @torch.no_grad()
    def __call__(self, present: Tensor) -> Tensor:
        """The target, (sets,), of sets of words, (sets, words): above 0.5 is present."""
        return self._model.target(self._target, self.logits(present))

    @torch.no_grad()
    def logits(self, present: Tensor) -> Tensor:
        """Float32, (sets, rows)."""
        sets = (present > 0.5).numpy()
        found = [row.logits(sets, self._model, self._tokens_per_pass, self.deadline) for row in self._rows]
        return torch.stack(found, dim=1)


class GameRow:
    """One row's logits by the words that it holds and that are present."""

    def __init__(self, model: WordModel, case: Case, row: CaseRow) -> None:
        self._here = sorted({word for word in row.words if word != SPECIAL})
        place = {word: i for i, word in enumerate(self._here)}
        alone = Case(case.choice, None, case.options, [row], case.words, [], case.baseline_id)
        self._inputs = model.inputs([alone])
        self._slot = torch.tensor([place.get(word, len(place)) for word in row.words])
        self._known: dict[bytes, float] = {}

    def logits(self, sets: NDArray[np.bool_], model: WordModel, tokens_per_pass: int, deadline: float) -> Tensor:
        """Float32, (sets,). Raises DeadlinePassed."""
        here = sets[:, self._here]
        keys = [row.tobytes() for row in here]
        missing = {key: i for i, key in enumerate(keys) if key not in self._known}
        wanted = torch.from_numpy(here[list(missing.values())])
        step = fitting(len(self._slot), tokens_per_pass)
        found: list[float] = []
        for start in range(0, len(wanted), step):
            if time.monotonic() > deadline:
                raise DeadlinePassed
            found += self._compute(model, wanted[start : start + step]).tolist()
        self._known.update(zip(missing, found, strict=True))
        return torch.tensor([self._known[key] for key in keys])

    def _compute(self, model: WordModel, present: Tensor) -> Tensor:
        inputs = self._inputs
        # Special tokens have the last slot, which is always there.
        always = torch.ones(len(present), 1, dtype=torch.bool)
        kept = torch.cat([present, always], dim=1)[:, self._slot].unsqueeze(1).to(model.device)
        shown = torch.where(kept, inputs.ids, inputs.baseline_ids)
        ids, *rest = (tensor.expand(len(present), -1, -1) for tensor in (inputs.ids, *inputs.rest))
        return model.logits_showing(shown, ids, *rest)[:, 0]


def occlusion(model: WordModel, case: Case, deadline: float, *, tokens_per_pass: int) -> Found | None:
    """What the target loses when one word goes and all others stay; None if the deadline came first."""
    started = time.monotonic()
    game = Game(model, case, tokens_per_pass, deadline)
    everything = torch.ones(1, game.words)
    try:
        scores = Occlusion(game).attribute(everything, sliding_window_shapes=(1,), perturbations_per_eval=game.words)
        value, nothing = ends(game)
    except DeadlinePassed:
        return None
    return Found(scores[0].tolist(), value, nothing, time.monotonic() - started)


def shapley(model: WordModel, case: Case, deadline: float, *, tokens_per_pass: int) -> Found | None:
    """Each word's share of the target's change, averaged over the orders in which words may come.

    Exactly, where going through all sets of words costs no more than the orders that were asked for. After the
    deadline (time.monotonic seconds) no further order is tried; None if not even the least was done by then.
    Source: Shapley 1953; Strumbelj and Kononenko 2010.
    """
    started = time.monotonic()
    game = Game(model, case, tokens_per_pass, deadline)
    try:
        return share_out(game, case.options.samples or DEFAULT_SAMPLES, started)
    except DeadlinePassed:
        return None


def share_out(game: Game, samples: int, started: float) -> Found:
    """Exact or sampled Shapley values of a game that began at `started`. Raises DeadlinePassed."""
    value, nothing = ends(game)
    if 2**game.words <= max(samples * game.words, ALWAYS_EXACT):
        scores = enumerate_sets(game)
        return Found(scores, value, nothing, time.monotonic() - started, exact=True)
    scores, spread, orders = sample_orders(game, samples)
    return Found(scores, value, nothing, time.monotonic() - started, orders, spread, exact=False)


def ends(game: Game) -> tuple[float, float]:
    """The target with all words, and with none."""
    value, nothing = game(torch.stack([torch.ones(game.words), torch.zeros(game.words)])).tolist()
    return value, nothing


def enumerate_sets(game: Game) -> list[float]:
    """Shapley values from the target of every set of words; Captum's exact form goes through all orders, n! of them."""
    n = game.words
    sets = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    values = game(torch.from_numpy(sets.astype(np.float32))).double().numpy()
    sizes = sets.sum(1)
    weights = np.array([math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)])
    scores = []
    for word in range(n):
        without = np.flatnonzero(sets[:, word] == 0)
        gains = values[without + (1 << word)] - values[without]
        scores.append(float((weights[sizes[without]] * gains).sum()))
    return scores


def sample_orders(game: Game, samples: int) -> tuple[list[float], list[float], int]:
    """Mean scores over random orders, each with its reverse, their standard errors, and the number of orders.

    Raises DeadlinePassed before the second pair of orders is done; what is done later counts.
    """
    method = ShapleyValueSampling(game)
    dice = np.random.default_rng(SEED)
    everything = torch.ones(1, game.words)
    pairs: list[NDArray[np.float64]] = []
    while 2 * len(pairs) < max(samples, 4):
        order = dice.permutation(game.words)

        def both(_: int, __: int, order: NDArray[np.int64] = order) -> Iterator[Sequence[int]]:
            yield order.tolist()
            yield order[::-1].tolist()

        method.permutation_generator = both
        try:
            scores = method.attribute(everything, n_samples=2, perturbations_per_eval=game.words)
        except DeadlinePassed:
            if len(pairs) < 2:
                raise
            break
        pairs.append(scores[0].double().numpy())
    table = np.stack(pairs)
    errors = table.std(0, ddof=1) / math.sqrt(len(pairs))
    return table.mean(0).tolist(), errors.tolist(), 2 * len(pairs)
