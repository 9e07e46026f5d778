"""Learns a specification's parameters from a training table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from marctl_handlers.features.encode import shown_value
from marctl_handlers.features.specification import (
    Bucket,
    Clip,
    Feature,
    FeaturesInvalid,
    Hash,
    Log,
    Specification,
    Standardise,
    Steps,
    derived_order,
    specification_of,
)
from marctl_handlers.features.tables import as_arrow, categories_of, cells_of, refuse_faulty, resolve_table
from marctl_handlers.features.values import Matrix, Values

if TYPE_CHECKING:
    import pyarrow as pa

Present = NDArray[np.float64]
"""A feature's values in the rows that have one."""


def fit(specification: Specification, table: Any) -> Specification:
    """The specification with every parameter that was left open learned from a pyarrow or pandas table.

    Parameters that are given stay. Columns of the table that are no features are passed over. Raises FeaturesInvalid
    listing the columns and rows that break the specification.
    """
    arrow = as_arrow(table)
    missing = [f.name for f in specification.sent if f.name not in arrow.column_names]
    if missing or not arrow.num_rows:
        raise FeaturesInvalid([f"the table has no column {name}" for name in missing] or ["the table has no rows"])
    specification = with_categories(specification, arrow)
    cells = cells_of(Values(specification), arrow)
    derived = [name for name in derived_order(specification.features) if specification[name].derived]
    specification = learned(specification, [f.name for f in specification.sent], cells, with_gaps_filled)
    for name in derived:  # each needs its parts without gaps
        specification = learned(specification, [name], cells, with_gaps_filled)
    refuse_faulty(resolve_table(Values(specification), arrow))
    specification = learned(specification, [f.name for f in specification.features], cells, with_scale)
    return specification_of(msgspec.to_builtins(specification))


def with_categories(specification: Specification, table: pa.Table) -> Specification:
    features, faults = [], []
    for feature in specification.features:
        wanted = feature.is_category and feature.categories is None and feature.step(Hash) is None
        try:
            found = categories_of(feature, table) if wanted else feature.categories
            features.append(msgspec.structs.replace(feature, categories=found))
        except (TypeError, ValueError) as err:
            faults.append(f"column {feature.name}: {err}")
    if faults:
        raise FeaturesInvalid(faults)
    return Specification(tuple(features))


def learned(
    specification: Specification, names: Sequence[str], cells: Matrix, learn: Callable[[Feature, Present], Feature]
) -> Specification:
    """The specification with these features learned from their values in the table."""
    values = Values(specification)
    resolved = values.settle(cells, {})
    present = {name: resolved.values[i][~resolved.imputed[i]] for name in names for i in [values.place[name]]}
    if empty := [name for name, found in present.items() if not len(found)]:
        raise FeaturesInvalid([f"column {name}: no row has a value" for name in empty])
    features = [learn(f, present[f.name]) if f.name in present else f for f in specification.features]
    return Specification(tuple(features))


def with_gaps_filled(feature: Feature, present: Present) -> Feature:
    """What stands in for missing values, and the bounds of clip."""
    fill = feature.fill
    if fill is None and feature.missing_rule in STAND_INS:
        fill = shown_value(feature, STAND_INS[feature.missing_rule](present))
    return msgspec.structs.replace(feature, fill=fill, transform=tuple(clipped(s, present) for s in feature.transform))


def most_frequent(present: Present) -> float:
    """The smallest of the most frequent ones."""
    found, counts = np.unique(present, return_counts=True)
    return float(found[counts.argmax()])


STAND_INS: dict[str, Callable[[Present], float]] = {
    "mean": lambda present: float(present.mean()),
    "median": lambda present: float(np.median(present)),
    "most_frequent": most_frequent,
}


def clipped(step: Steps, present: Present) -> Steps:
    if not isinstance(step, Clip):
        return step
    low, high = np.quantile(present, [step.quantile, 1 - step.quantile]).tolist()
    low, high = low if step.low is None else step.low, high if step.high is None else step.high
    return msgspec.structs.replace(step, low=low, high=high)


def with_scale(feature: Feature, present: Present) -> Feature:
    """Means, scales and edges, after clipping and the logarithm, of the rows that have the value."""
    log = feature.step(Log)
    scaled = present if log is None else np.log(present + log.shift)
    return msgspec.structs.replace(feature, transform=tuple(scaled_step(s, scaled) for s in feature.transform))


def scaled_step(step: Steps, present: Present) -> Steps:
    if isinstance(step, Standardise):
        mean = float(present.mean()) if step.mean is None else step.mean
        return Standardise(mean, (float(present.std()) or 1.0) if step.scale is None else step.scale)
    if isinstance(step, Bucket) and step.edges is None:
        edges = np.unique(np.quantile(present, np.linspace(0, 1, step.count + 1)[1:-1]))
        return msgspec.structs.replace(step, edges=tuple(edges.tolist()))
    return step
