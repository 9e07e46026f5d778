"""Methods that remove words and observe the target: Shapley values and occlusion.

Both treat a case as a cooperative game whose players are its words: a vector with 1 for each word that is present.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from captum.attr import Occlusion
from numpy.typing import NDArray
from torch import Tensor

from marctl_handlers.explanations.outcome import Found
from marctl_handlers.explanations.shapley import DEFAULT_SAMPLES, DeadlinePassed, ends, share_out
from marctl_handlers.tasks.multiple_choice.explain.cases import SPECIAL, Case, CaseRow
from marctl_handlers.tasks.multiple_choice.explain.forward import WordModel, fitting


class Game:
    """The target as a function of which words are present; each row's logit is computed once per set of its words.

    Calls raise DeadlinePassed once the deadline (time.monotonic seconds) is over.
    """

    def __init__(self, model: WordModel, case: Case, tokens_per_pass: int, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.players = len(case.words)
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
    everything = torch.ones(1, game.players)
    try:
        scores = Occlusion(game).attribute(everything, sliding_window_shapes=(1,), perturbations_per_eval=game.players)
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
