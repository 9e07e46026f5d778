"""Figures by group of people: protected features of the specification, numeric ones by bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl.train.ranking import area_under_roc
from marctl.train.reliability import Floats, calibration_error
from marctl.train.tables.table import LabelledTable
from marctl_handlers.features import Feature, Specification
from marctl_handlers.features.encode import interval_names

QUARTERS = (0.25, 0.5, 0.75)
LEAST_ROWS = 30
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Group:
    """Rows of one group; `rows` are their places."""

    feature: str
    name: str
    rows: NDArray[np.intp]


def groups_of(table: LabelledTable, specification: Specification, edges: Mapping[str, Sequence[float]]) -> list[Group]:
    """Of every protected feature and of those that have `edges`; those of few rows, which tell little but who is in
    them, are left out."""
    found = []
    for feature in specification.sent:
        if feature.protected or feature.name in edges:
            values = table.features.column(feature.name).to_pylist()
            names = band_names(values, edges.get(feature.name)) if numeric(feature) else [text(v) for v in values]
            found += [Group(feature.name, name, rows) for name, rows in by_name(names) if len(rows) >= LEAST_ROWS]
    return found


def numeric(feature: Feature) -> bool:
    return feature.type in ("number", "integer")


def text(value: Any) -> str:
    return NOT_GIVEN if value is None else str(value)


def band_names(values: Sequence[float | None], edges: Sequence[float] | None) -> list[str]:
    """The band of each value; quarters of the rows if no edges are given."""
    numbers = np.array(values, float)
    if edges is None:
        edges = np.unique(np.nanquantile(numbers, QUARTERS)).tolist() if np.isfinite(numbers).any() else [0.0]
    bands = list(interval_names(edges))
    places = np.searchsorted(edges, numbers, side="right")
    return [
        NOT_GIVEN if missing else bands[place]
        for place, missing in zip(places.tolist(), np.isnan(numbers).tolist(), strict=True)
    ]


def by_name(names: Sequence[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Places of each name; bands by where they begin."""
    return [(name, np.flatnonzero(np.array(names) == name)) for name in sorted(set(names), key=band_order)]


def band_order(name: str) -> tuple[float, str]:
    if name.startswith("<"):
        return (-np.inf, name)
    head = name.removeprefix(">=").split("-")[0]
    try:
        return (float(head), name)
    except ValueError:
        return (np.inf, name)


def group_record(group: Group, probability: Floats, hit: Floats, predicted: NDArray[np.bool_]) -> dict[str, Any]:
    """Figures of a group's rows; `predicted`: whether the event was."""
    p, came, predicted = probability[group.rows], hit[group.rows], predicted[group.rows]
    return {
        "feature": group.feature,
        "group": group.name,
        "rows": len(p),
        "share": share(came),
        "mean_probability": share(p),
        "auc": rounded(area_under_roc(p, came)),
        "brier": share((p - came) ** 2),
        "ece": rounded(calibration_error(p, came)),
        "predicted_share": share(predicted),
        "false_positive_rate": share(predicted[came == 0]),
        "false_negative_rate": share(~predicted[came == 1]),
    }


def share(values: NDArray[Any]) -> float | None:
    return rounded(float(values.mean())) if len(values) else None


def rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
