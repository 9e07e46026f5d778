"""From rows to one number a feature and row, checked, with gaps filled and marks of what was changed.

A number stands for itself, a boolean is 0 or 1, a category its code: its place in `categories`, or its hash bucket.
NaN is a missing value. All features of a batch are one matrix, so that most steps are one operation of numpy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.features.derived import derive
from marctl_handlers.features.specification import (
    LARGEST,
    LONGEST_CATEGORY,
    Clip,
    Feature,
    Hash,
    Specification,
    bounds_of,
    derived_order,
    value_fault,
)

Matrix = NDArray[np.float64]
"""Shape (features, rows), features in the specification's order."""
Marks = NDArray[np.bool_]
"""The same shape."""
Faults = dict[int, list[tuple[str, str]]]
"""Row -> the feature's name and what is wrong with it, for every fault."""

NAN = float("nan")
UNKNOWN = float("-inf")
"""In place of a code, until it is decided what becomes of an unknown category."""
NUMBERS, BOOLEANS, TEXTS = {float, int, type(None)}, {bool, type(None)}, {str, type(None)}
MOST_GUESSES = 3
"""Names that are compared with the known ones, which takes long."""
MOST_NAME = 60
"""Characters of a name that a client made up, in an error."""


@dataclass(frozen=True)
class Resolved:
    """A batch's values, none missing but where the specification keeps gaps. A row with faults means nothing."""

    values: Matrix
    imputed: Marks
    """Missing, unknown or too old: filled in by the specification's rule, or left to the model if that is `keep`."""
    clipped: Marks
    faults: Faults

    def names(self, marks: Marks, features: Sequence[Feature]) -> list[list[str]]:
        """The marked features of each row."""
        found: list[list[str]] = [[] for _ in range(marks.shape[1])]
        if marks.any():
            for place, row in zip(*np.nonzero(marks), strict=True):
                found[row].append(features[place].name)
        return found


class Values:
    """Reads rows as a specification says. Parameters that are not learned yet count as absent."""

    def __init__(self, specification: Specification) -> None:
        self.specification = specification
        self.features = specification.features
        self.place = {feature.name: i for i, feature in enumerate(self.features)}
        sent = specification.sent
        self._sent = {feature.name: feature for feature in sent}
        numbers = [f for f in sent if f.type in ("number", "integer")]
        booleans = [f for f in sent if f.type == "boolean"]
        self._groups = [
            (tuple(f.name for f in group), [self.place[f.name] for f in group], kinds)
            for group, kinds in ((numbers, NUMBERS), (booleans, BOOLEANS))
            if group
        ]
        self._categories = [(f.name, self.place[f.name], coding_of(f)) for f in sent if f.is_category]
        self._integers = [self.place[f.name] for f in sent if f.type == "integer"]
        self._low, self._high = columns(map(accepted, self.features))
        self._clip_low, self._clip_high = columns(map(clip_bounds, self.features))
        self._required = column(f.missing_rule == "refuse" and f.derived is None for f in self.features).astype(bool)
        self._fill = column(map(stand_in, self.features))
        self._derived = [
            (self.place[name], feature, [self.place[part] for part in feature.derived.of])
            for name in derived_order(self.features)
            if (feature := self.specification[name]).derived is not None
        ]

    # --- rows

    def resolve(self, rows: Sequence[Mapping[str, Any]]) -> Resolved:
        """Decoded JSON objects, or the like, feature name to value; None and NaN are missing values."""
        faults: Faults = {}
        try:
            values, suspects = self._read(rows)
        except (TypeError, OverflowError):
            # A cell of a wrong type: whose it is takes a look at every cell.
            faults = {i: found for i, row in enumerate(rows) if (found := self.faults_of(row))}
            values, suspects = self._read([{} if i in faults else row for i, row in enumerate(rows)])
        for i in (suspects | self.suspects(values)) - faults.keys():
            if found := self.faults_of(rows[i]):
                faults[i] = found
        return self.settle(values, faults)

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Matrix, set[int]]:
        """The values as they are, and rows to be looked at closely. Raises TypeError or OverflowError."""
        values = np.full((len(self.features), len(rows)), NAN)
        for names, places, kinds in self._groups:
            cells = [list(map(row.get, names)) for row in rows]
            if not set(map(type, chain.from_iterable(cells))) <= kinds:
                raise TypeError(f"cells of another type than {kinds}")
            values[places] = np.array(cells, np.float64).T
        suspects = {i for i, row in enumerate(rows) if not row.keys() <= self._sent.keys()}
        for name, place, codes in self._categories:
            texts = [row.get(name) for row in rows]
            if not set(map(type, texts)) <= TEXTS:
                raise TypeError(f"{name}: a category that is not text")
            values[place] = codes(texts)
            suspects |= {i for i, text in enumerate(texts) if text is not None and len(text) > LONGEST_CATEGORY}
        return values, suspects

    def faults_of(self, row: Mapping[str, Any], *, complete: bool = True) -> list[tuple[str, str]]:
        """Every fault of one row; of one that is not complete yet, nothing that is missing."""
        found = []
        for feature in self._sent.values():
            value = row.get(feature.name)
            if value is None or value != value:
                if complete and feature.missing_rule == "refuse":
                    found.append((feature.name, "missing; expected a value"))
            elif fault := value_fault(feature, value):
                found.append((feature.name, fault))
        strange = [name for name in row if name not in self._sent]
        return found + [(name[:MOST_NAME], self._no_such(name, i < MOST_GUESSES)) for i, name in enumerate(strange)]

    def _no_such(self, name: str, guess: bool) -> str:
        if name in self.place:
            return "is computed from other features; leave it out"
        alike = difflib.get_close_matches(name, self._sent, n=1) if guess and len(name) <= MOST_NAME else []
        return f"no such feature; did you mean `{alike[0]}`?" if alike else "no such feature"

    # --- what rows and tables have in common

    def suspects(self, values: Matrix) -> set[int]:
        """Rows with a value that may be refused: out of range, not an integer, an unknown category, none at all."""
        odd = (values < self._low) | (values > self._high) | (np.isnan(values) & self._required)
        whole = values[self._integers]
        odd[self._integers] |= np.isfinite(whole) & (whole != np.floor(whole))
        return set(np.flatnonzero(odd.any(axis=0)).tolist())

    def settle(self, values: Matrix, faults: Faults) -> Resolved:
        """Fill gaps, clip, and compute derived features. Rows with faults count as empty."""
        values = np.where(values == UNKNOWN, NAN, values)
        values[:, list(faults)] = NAN
        imputed = np.isnan(values)
        values = np.where(imputed, self._fill, values)
        clipped = (values < self._clip_low) | (values > self._clip_high)
        values = np.clip(values, self._clip_low, self._clip_high)
        for place, feature, of in self._derived:
            made = derive(feature, values[of])
            missing = imputed[place] = np.isnan(made)
            made = np.where(missing, self._fill[place], made)
            low, high = self._clip_low[place], self._clip_high[place]
            clipped[place] = (made < low) | (made > high)
            values[place] = np.clip(made, low, high)
            if feature.missing_rule == "refuse" and missing.any():
                for i in np.flatnonzero(missing).tolist():
                    faults.setdefault(i, []).append((feature.name, cannot_compute(feature)))
        return Resolved(values, imputed, clipped, faults)


def columns(pairs: Iterable[tuple[float, float]]) -> tuple[Matrix, Matrix]:
    """Of bounds, one of the lower and one of the upper ones."""
    low, high = zip(*pairs, strict=True)
    return column(low), column(high)


def column(values: Iterable[float]) -> Matrix:
    """One value a feature, shape (features, 1)."""
    return np.array(list(values), np.float64)[:, None]


def accepted(feature: Feature) -> tuple[float, float]:
    """Bounds beyond which a value is looked at closely."""
    if feature.derived is not None:
        return -np.inf, np.inf
    if feature.is_category:
        return (0.0 if feature.unknown == "refuse" else UNKNOWN), np.inf
    return bounds_of(feature) if feature.outside == "refuse" else (-LARGEST, LARGEST)


def clip_bounds(feature: Feature) -> tuple[float, float]:
    """Those of the range and of the transform's clip, whichever are closer; none that are not learned yet."""
    low, high = bounds_of(feature) if feature.outside == "clip" else (-np.inf, np.inf)
    clip = feature.step(Clip)
    if clip is not None:
        low = low if clip.low is None else max(low, clip.low)
        high = high if clip.high is None else min(high, clip.high)
    return low, high


def stand_in(feature: Feature) -> float:
    """What fills a gap, as a value of the matrix; NaN where nothing does."""
    value = feature.stand_in
    if value is None:
        return NAN
    return coding_of(feature)([value])[0] if isinstance(value, str) else float(value)


def coding_of(feature: Feature) -> Callable[[Sequence[str | None]], Sequence[float]]:
    """From categories to codes; missing ones are NaN, unknown ones UNKNOWN."""
    hashed = feature.step(Hash)
    if hashed is not None:
        return lambda texts: [NAN if text is None else float(bucket_of(text, hashed.buckets)) for text in texts]
    codes: dict[str | None, float] = {name: float(i) for i, name in enumerate(feature.categories or ())}
    codes[None] = NAN
    return lambda texts: list(map(codes.get, texts, repeat(UNKNOWN)))


def bucket_of(text: str, buckets: int) -> int:
    # Lone surrogates have no UTF-8, and must break no batch.
    return crc32(text.encode("utf-8", "surrogatepass")) % buckets


def cannot_compute(feature: Feature) -> str:
    assert feature.derived is not None
    return f"cannot be computed: a value of {', '.join(feature.derived.of)} is missing, or 0 where it divides"
