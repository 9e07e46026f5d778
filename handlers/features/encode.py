"""From settled values to the one float32 matrix that a model reads, and which column is whose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.features.specification import (
    LARGEST,
    Bucket,
    Feature,
    FeaturesInvalid,
    Hash,
    Log,
    OneHot,
    Specification,
    Standardise,
    unfitted,
)
from marctl_handlers.features.values import Resolved, Values, column

Encoded = NDArray[np.float32]
"""Shape (rows, columns), rows contiguous in memory."""
DIRECTION = {"increasing": 1, "decreasing": -1, None: 0}


@dataclass(frozen=True, slots=True)
class EncodedColumn:
    """One column of a model's input."""

    name: str
    """The feature's own, or with what the column stands for: `home=owner`."""
    feature: str
    monotone: int
    """1 or -1 where the prediction must rise or fall with it, else 0: XGBoost's `monotone_constraints`."""


class Features(Values):
    """A fitted specification at work. Its calls keep nothing of a batch, so that threads may share it."""

    def __init__(self, specification: Specification) -> None:
        """Raises FeaturesInvalid if a parameter is not learned yet."""
        if faults := unfitted(specification):
            raise FeaturesInvalid([*faults, "fit the specification to a training table first"])
        super().__init__(specification)
        wide = [one_hot_names(f) for f in self.features]
        self.columns = [column for f, names in zip(self.features, wide, strict=True) for column in encoded(f, names)]
        """Of the encoded matrix, in order."""
        starts = np.cumsum([0, *(len(names or [""]) for names in wide)])[:-1]
        self._starts = starts
        self._single = np.array([i for i, names in enumerate(wide) if names is None], np.intp)
        self._single_at = starts[self._single]
        self._wide = np.array([i for i, names in enumerate(wide) if names is not None], np.intp)
        self._wide_at = starts[self._wide][:, None]
        single = [self.features[i] for i in self._single]
        steps = [f.step(Standardise) or Standardise(0.0, 1.0) for f in single]
        self._mean, self._scale = column(s.mean or 0.0 for s in steps), column(s.scale or 1.0 for s in steps)
        logs = [(i, f.step(Log)) for i, f in enumerate(single) if f.step(Log)]
        self._logs, self._shift = [i for i, _ in logs], column(log.shift for _, log in logs)
        buckets = [(i, f.step(Bucket)) for i, f in enumerate(self.features) if f.step(Bucket)]
        self._buckets = [(i, np.array(bucket.edges)) for i, bucket in buckets]

    def encode(self, resolved: Resolved) -> Encoded:
        """The model's input for a batch. A gap that the specification keeps is NaN, or all zeros in one-hot columns."""
        values = self._bucketed(resolved.values)
        out = np.zeros((values.shape[1], len(self.columns)), np.float32)
        single = values[self._single]
        if self._logs:
            single[self._logs] = np.log(single[self._logs] + self._shift)
        np.clip((single - self._mean) / self._scale, -LARGEST, LARGEST, out=single)
        out[:, self._single_at] = single.T
        if len(self._wide):
            codes = values[self._wide]
            feature, row = np.nonzero(~np.isnan(codes))
            out[row, (self._wide_at + np.nan_to_num(codes).astype(np.intp))[feature, row]] = 1
        return out

    def _bucketed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same with bucket numbers in place of what has buckets."""
        if not self._buckets:
            return values
        values = values.copy()
        for place, edges in self._buckets:
            found = np.searchsorted(edges, values[place], side="right").astype(np.float64)
            values[place] = np.where(np.isnan(values[place]), np.nan, found)
        return values

    def shown(self, resolved: Resolved, row: int) -> dict[str, Any]:
        """A row's values for people: numbers as they are after filling and clipping, categories by name.

        A hashed category is its bucket's number; None is a gap that the specification keeps.
        """
        return {f.name: shown_value(f, resolved.values[i, row]) for i, f in enumerate(self.features)}

    def sum_by_feature(self, by_column: NDArray[Any]) -> NDArray[Any]:
        """Of one number a column, shape (..., columns), the sum for each feature, shape (..., features)."""
        starts = np.flatnonzero(
            [i == 0 or a.feature != self.columns[i - 1].feature for i, a in enumerate(self.columns)]
        )
        return np.add.reduceat(by_column, starts, axis=-1)


def one_hot_names(feature: Feature) -> list[str] | None:
    """What the columns of a one-hot or hashed feature stand for; None if the feature is one column."""
    hashed, bucket = feature.step(Hash), feature.step(Bucket)
    if hashed is not None:
        return [f"#{i}" for i in range(hashed.buckets)]
    if feature.step(OneHot) is None:
        return None
    return list(feature.categories or ()) if bucket is None else list(interval_names(bucket.edges))


def interval_names(edges: Sequence[float]) -> Iterator[str]:
    yield f"<{edges[0]:g}"
    yield from (f"{low:g}-{high:g}" for low, high in pairwise(edges))
    yield f">={edges[-1]:g}"


def encoded(feature: Feature, names: Sequence[str] | None) -> list[EncodedColumn]:
    if names is None:
        return [EncodedColumn(feature.name, feature.name, DIRECTION[feature.monotone])]
    return [EncodedColumn(f"{feature.name}={name}", feature.name, 0) for name in names]


def shown_value(feature: Feature, value: float) -> Any:
    if np.isnan(value):
        return None
    if feature.categories is not None:
        return feature.categories[int(value)]
    if feature.type == "boolean":
        return bool(value)
    return int(value) if feature.is_category or (feature.type == "integer" and value == int(value)) else float(value)
