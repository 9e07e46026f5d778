"""Cross-validation of everything that training does: the specification's parameters, the candidate, the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marctl.build.table_training import Learner
from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.train.reliability import Floats, Judged
from marctl.train.tables.fitted import Fitted
from marctl.train.tables.learners import fit
from marctl.train.tables.table import LabelledTable
from marctl_handlers.features import Features, FeaturesInvalid, Specification, resolve_table
from marctl_handlers.features import fit as fit_features
from marctl_handlers.features.encode import Encoded

Fold = NDArray[np.intp]
Step = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A specification with what it learned, and the model behind it."""

    features: Features
    model: Fitted

    def probabilities(self, table: LabelledTable) -> Floats:
        return self.model.probabilities(encoded(self.features, table))


@dataclass(frozen=True)
class Procedure:
    """What is done to a table: the best of the candidates, by cross-validation, is trained on all of its rows."""

    specification: Specification
    candidates: Sequence[Learner]
    folds: int
    seed: int

    def train(self, table: LabelledTable) -> tuple[Trained, int]:
        """And which candidate it was."""
        chosen = self.choose(table)
        return self.with_candidate(chosen, table), chosen

    def choose(self, table: LabelledTable) -> int:
        """The candidate with the least log loss on rows held out in turn."""
        if len(self.candidates) == 1:
            return 0
        losses = np.zeros(len(self.candidates))
        for fold in folds_of(table.labels, self.folds, self.seed):
            rest, here = split(table, fold)
            features = learned(self.specification, rest)
            seen, held_out = encoded(features, rest), encoded(features, here)
            for i, candidate in enumerate(self.candidates):
                model = fit(candidate, seen, rest.labels, features.columns, self.seed)
                losses[i] += log_loss(model.probabilities(held_out), here.labels)
        return int(losses.argmin())

    def with_candidate(self, chosen: int, table: LabelledTable) -> Trained:
        features = learned(self.specification, table)
        model = fit(self.candidates[chosen], encoded(features, table), table.labels, features.columns, self.seed)
        return Trained(features, model)

    def held_out(self, table: LabelledTable, step: Step) -> tuple[Floats, list[Fold], list[int]]:
        """Each row's probability from a training without its fold; the folds, and the candidate chosen for each."""
        folds = folds_of(table.labels, self.folds, self.seed)
        found, chosen = np.zeros(len(table)), []
        for number, fold in enumerate(folds, 1):
            step(f"fold {number} of {len(folds)}")
            rest, here = split(table, fold)
            trained, candidate = self.train(rest)
            found[fold] = trained.probabilities(here)
            chosen.append(candidate)
        return found, folds, chosen


def folds_of(labels: NDArray[np.intp], count: int, seed: int) -> list[Fold]:
    """Rows of each fold, drawn evenly within each label."""
    dice, fold = np.random.default_rng(seed), np.zeros(len(labels), np.intp)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        fold[dice.permutation(places)] = np.arange(len(places)) % count
    return [np.flatnonzero(fold == number) for number in range(count)]


def split(table: LabelledTable, fold: Fold) -> tuple[LabelledTable, LabelledTable]:
    """The rows outside of the fold, and those in it."""
    return table.take(np.setdiff1d(np.arange(len(table)), fold)), table.take(fold)


def learned(specification: Specification, table: LabelledTable) -> Features:
    """Raises UserError listing what in the table breaks the specification."""
    try:
        return Features(fit_features(specification, table.features))
    except FeaturesInvalid as err:
        raise UserError(listed(table.path, err.faults)) from err


def encoded(features: Features, table: LabelledTable) -> Encoded:
    return features.encode(resolve_table(features, table.features))


def log_loss(probability: Floats, labels: NDArray[np.intp]) -> float:
    """Over the rows, in total."""
    return float(judged(probability, labels).log_loss.sum())


def judged(probability: Floats, labels: NDArray[np.intp]) -> Judged:
    return Judged.of(np.column_stack([1 - probability, probability]).tolist(), labels.tolist(), "event")
