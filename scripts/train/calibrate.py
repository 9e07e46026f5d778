"""Learning a calibration from labelled rows; the form of its map is chosen by cross-validation.

A row is the probabilities that a model gives without calibration, and the place of the true one. Their logarithms are
the model's scores but for a constant, which a softmax takes away again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from marctl.core.errors import UserError
from marctl.train.reliability import Floats, Judged, Kind
from marctl_handlers.core.calibration import Calibration, Isotonic, Platt, Temperature, softmax

FOLDS = 10
LEAST_ROWS = 100
"""A temperature from fewer is a guess: its error is then about a tenth."""
LEAST_ROWS_A_GROUP = 200
"""For a temperature of its own by number of choices."""
SMALLEST = 1e-300
NEEDS_SKLEARN = "calibrating an event's probability needs scikit-learn; pip install scikit-learn"
HOTTEST = 100.0
"""Temperatures are sought between this and one by it."""


class Unlearnable(UserError):
    """These rows determine no calibration."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows; `sets` names the data set of each, so that every fold has its share of all."""

    probabilities: Sequence[Sequence[float]]
    labels: Sequence[int]
    sets: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        return Rows(
            list(compress(self.probabilities, chosen)),
            list(compress(self.labels, chosen)),
            list(compress(self.sets, chosen)),
        )


Learner = Callable[[Rows], Calibration | None]


@dataclass(frozen=True)
class Learned:
    """`calibration` is learned from all rows; `held_out` judges each row by one learned without its fold."""

    calibration: Calibration | None
    form: str
    log_losses: Mapping[str, float]
    """Of each form that was tried, on held-out rows."""
    before: Judged
    held_out: Judged


def learn(rows: Rows, kind: Kind) -> Learned:
    """The best form for these rows. Raises Unlearnable."""
    refuse(rows)
    folds = folds_of(rows.sets)
    held_out = {name: cross_validate(rows, kind, learner, folds) for name, learner in FORMS[kind].items()}
    form = choose({name: judged.log_loss for name, judged in held_out.items()})
    return Learned(
        calibration=FORMS[kind][form](rows),
        form=form,
        log_losses={name: float(judged.log_loss.mean()) for name, judged in held_out.items()},
        before=Judged.of(rows.probabilities, rows.labels, kind),
        held_out=held_out[form],
    )


def refuse(rows: Rows) -> None:
    """Raise Unlearnable for rows that tell too little."""
    if len(rows) < LEAST_ROWS:
        raise Unlearnable(f"{len(rows)} labelled rows; a calibration needs at least {LEAST_ROWS}")
    if len(set(rows.labels)) < 2:
        raise Unlearnable(f"all {len(rows)} rows have the label {rows.labels[0]}; a calibration needs at least two")


def folds_of(sets: Sequence[str]) -> NDArray[np.intp]:
    """The fold of each row, drawn evenly within each set."""
    dice, found = np.random.default_rng(0), np.zeros(len(sets), np.intp)
    names = np.array(sets)
    for name in sorted(set(sets)):
        places = np.flatnonzero(names == name)
        found[dice.permutation(places)] = np.arange(len(places)) % FOLDS
    return found


def cross_validate(rows: Rows, kind: Kind, learner: Learner, folds: NDArray[np.intp]) -> Judged:
    """Every row, judged by what was learned without its fold."""
    found: list[Sequence[float]] = [()] * len(rows)
    for fold in range(FOLDS):
        here = folds == fold
        calibrated = apply(learner(rows.where(~here)), rows.where(here).probabilities)
        for place, row in zip(np.flatnonzero(here), calibrated, strict=True):
            found[place] = row
    return Judged.of(found, rows.labels, kind)


def choose(losses: Mapping[str, Floats]) -> str:
    """The simplest form that is no worse than the best by more than a standard error of their difference.

    `losses`: each form's loss by row, the simplest first. Source: the one-standard-error rule, Breiman et al. 1984.
    """
    best = min(losses, key=lambda name: losses[name].mean())
    for name, loss in losses.items():
        worse = loss - losses[best]
        if worse.mean() <= worse.std(ddof=1) / math.sqrt(len(worse)):
            return name
    return best


def apply(calibration: Calibration | None, probabilities: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Calibrated probabilities of each row."""
    if calibration is None:
        return list(probabilities)
    if isinstance(calibration, Temperature):
        return [softmax(scores_of(row), calibration) for row in probabilities]
    event = calibration(np.array([row[1] for row in probabilities]))
    return [(1 - p, p) for p in event.tolist()]


def scores_of(probabilities: Sequence[float]) -> list[float]:
    return [math.log(max(p, SMALLEST)) for p in probabilities]


def learn_temperature(rows: Rows) -> Temperature:
    """One for all."""
    return Temperature(round(temperature_of(rows), 4))


def learn_by_choices(rows: Rows) -> Temperature:
    """One by number of choices, where there are enough rows; one over all rows for the others."""
    counts = np.array([len(row) for row in rows.probabilities])
    by_choices = {}
    for n_choices in np.unique(counts):
        group = rows.where(counts == n_choices)
        if len(group) >= LEAST_ROWS_A_GROUP:
            with suppress(Unlearnable):
                by_choices[int(n_choices)] = round(temperature_of(group), 4)
    return Temperature(round(temperature_of(rows), 4), by_choices)


def temperature_of(rows: Rows) -> float:
    """The temperature of the greatest likelihood, by bisection: the log loss is convex in its inverse.

    Raises Unlearnable where the likelihood grows without end, as it does if all answers are right.
    """
    groups = score_groups(rows)
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    if slope(groups, math.exp(high)) <= 0:
        raise Unlearnable(f"all of the {len(rows)} rows are answered right, or nearly; harder ones are needed")
    if slope(groups, math.exp(low)) >= 0:
        raise Unlearnable(f"on these {len(rows)} rows the model is no better than guessing; are the labels right?")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(groups, math.exp(middle)) < 0 else (low, middle)
    return math.exp(-middle)


Group = tuple[Floats, Floats]
"""Scores, (rows, choices), of rows with one number of choices, and the true choice's, (rows, 1)."""


def score_groups(rows: Rows) -> list[Group]:
    by_count: dict[int, list[tuple[list[float], int]]] = {}
    for row, label in zip(rows.probabilities, rows.labels, strict=True):
        by_count.setdefault(len(row), []).append((scores_of(row), label))
    found = []
    for group in by_count.values():
        scores = np.array([row for row, _ in group])
        found.append((scores, np.take_along_axis(scores, np.array([[label] for _, label in group]), 1)))
    return found


def slope(groups: Sequence[Group], inverse: float) -> float:
    """How the log loss changes with the temperature's inverse: expected scores less those of the true choices."""
    total = 0.0
    for scores, true in groups:
        weights = np.exp(inverse * (scores - scores.max(1, keepdims=True)))
        total += float(((weights * scores).sum(1, keepdims=True) / weights.sum(1, keepdims=True) - true).sum())
    return total


def learn_platt(rows: Rows) -> Platt:
    """Logistic regression on the event's log-odds, without a penalty."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as err:
        raise UserError(NEEDS_SKLEARN) from err
    scores = [row[1] - row[0] for row in map(scores_of, rows.probabilities)]
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(np.array(scores)[:, None], np.array(rows.labels))
    steep = float(fitted.coef_[0, 0])
    if steep <= 0:
        raise Unlearnable(f"on these {len(rows)} rows the model is no better than guessing; are the labels right?")
    return Platt(round(steep, 4), round(float(fitted.intercept_[0]), 4))


def learn_isotonic(rows: Rows) -> Isotonic:
    """Isotonic regression, each level block drawn together to its centre, and the centres joined by lines.

    A block's share is that of its rows and of two more, one of each label, so that no probability is 0 or 1.
    """
    try:
        from sklearn.isotonic import isotonic_regression
    except ImportError as err:
        raise UserError(NEEDS_SKLEARN) from err
    order = np.argsort([row[1] for row in rows.probabilities], kind="stable")
    p = np.array([row[1] for row in rows.probabilities], float)[order]
    label = np.array(rows.labels, float)[order]
    _, starts, sizes = np.unique(isotonic_regression(label), return_index=True, return_counts=True)
    centres = np.add.reduceat(p, starts) / sizes
    shares = (np.add.reduceat(label, starts) + 1) / (sizes + 2)
    points: list[tuple[float, float]] = []
    for centre, share in zip(np.round(centres, 6).tolist(), np.round(shares, 6).tolist(), strict=True):
        if not points or (centre > points[-1][0] and share > points[-1][1]):
            points.append((centre, share))
    if len(points) < 2:
        raise Unlearnable(f"on these {len(rows)} rows the model is no better than guessing; are the labels right?")
    return Isotonic([x for x, _ in points], [y for _, y in points])


FORMS: dict[Kind, dict[str, Learner]] = {
    "choices": {
        "none": lambda rows: None,
        "one temperature": learn_temperature,
        "a temperature by number of choices": learn_by_choices,
    },
    "event": {"none": lambda rows: None, "Platt": learn_platt, "isotonic": learn_isotonic},
}
"""By what is calibrated, the simplest first."""
