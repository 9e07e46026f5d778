"""Stored features as they stood at earlier times, from a table of their history: what a store would have served then.

Training, batch jobs and drift reports join with it, so that no row sees a value that was not known yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.features.specification import Specification

if TYPE_CHECKING:
    import pyarrow as pa

NOBODY = -1


def as_of(
    table: pa.Table,
    specification: Specification,
    entity: str,
    ids: Sequence[int | str],
    times_s: Sequence[float],
    *,
    time_column: str = "time",
) -> pa.Table:
    """One row for each of `ids` at its time: the features of the entity's last row that is not later, null where there
    is none, and where that row is older than the feature's `freshness_s`.

    `table` has the ids in a column of the entity's name and times in `time_column`, as numbers of seconds since 1970 or
    as timestamps, in any order; of two rows of one time the one further down counts. Raises ValueError for a column
    that is missing.
    """
    import pyarrow as pa

    features = [f for f in specification.stored(entity) if f.name in table.column_names]
    missing = [name for name in (entity, time_column) if name not in table.column_names]
    if missing or not features:
        raise ValueError(f"the table has no column {missing[0]}" if missing else f"no column is a feature of {entity}")
    known_s, asked_s = seconds_of(table.column(time_column)), np.asarray(times_s, np.float64)
    places = last_rows(table.column(entity).to_pylist(), known_s, ids, asked_s)
    ages_s = asked_s - np.append(known_s, np.nan)[places]
    columns = []
    for feature in features:
        usable = places != NOBODY
        if feature.freshness_s is not None:
            usable &= ages_s <= feature.freshness_s
        columns.append(table.column(feature.name).take(pa.array(places, mask=~usable)))
    return pa.table(columns, names=[feature.name for feature in features])


def last_rows(
    known: Sequence[int | str], known_s: NDArray[np.float64], asked: Sequence[int | str], asked_s: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For each asked id, the place of its last known row that is not later than its time, or NOBODY."""
    codes: dict[int | str, int] = {}
    code = np.array([codes.setdefault(each, len(codes)) for each in (*known, *asked)], np.int64)
    is_asked = np.arange(len(code)) >= len(known)
    # By id and time; what is known at a time comes before what is asked at it.
    order = np.lexsort((np.arange(len(code)), is_asked, np.concatenate([known_s, asked_s]), code))
    latest = np.maximum.accumulate(np.where(is_asked[order], NOBODY, np.arange(len(order))))
    found = np.where(latest == NOBODY, NOBODY, order[latest])
    found[(found != NOBODY) & (code[found] != code[order])] = NOBODY
    places = np.empty(len(order), np.int64)
    places[order] = found
    return places[len(known) :]


def seconds_of(column: Any) -> NDArray[np.float64]:
    """Times as seconds since 1970; a timestamp without a zone is UTC."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_timestamp(column.type):
        column = compute.divide(compute.cast(compute.cast(column, pa.timestamp("us")), pa.int64()), 1e6)
    found: NDArray[np.float64] = compute.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    return found
