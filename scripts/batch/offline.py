"""Stored features as they were at a moment: entities' histories in Parquet, joined to rows without looking ahead.

A history has a column with the entity's id, named like the entity, a column `event_timestamp` that says since when the
row's values were known, and a column per feature. A row of the input gets, of the entities that it names, the values
of the latest row that was known at its own time; a feature whose value is older than its `freshness_s` then, or null,
is missing. What the input's row itself brings goes first, as it does online.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.batch.archive import Description
from scripts.batch.formats.block import ArrowBlock, Block
from scripts.batch.places import place_of
from scripts.core.errors import UserError

SINCE = "event_timestamp"
MOMENT = pa.timestamp("us", tz="UTC")
Row = dict[str, Any]


class History:
    """What was known of entities of one kind, by id and time."""

    def __init__(self, table: pa.Table, entity: str, limits_s: Mapping[str, float | None]) -> None:
        """`limits_s`: the features to take, and from which age on each is missing. Raises UserError."""
        ids = table[entity].to_pylist()
        since = moments(table[SINCE])
        codes = {one: i for i, one in enumerate(dict.fromkeys(ids))}
        coded = np.array([codes[one] for one in ids], np.int64)
        order = np.lexsort((since, coded))
        self._codes, self._since = codes, since[order]
        self._starts = np.searchsorted(coded[order], np.arange(len(codes) + 1))
        self._limits = {name: limit for name, limit in limits_s.items() if name in table.column_names}
        self._values = {name: table[name].take(pa.array(order)).to_pylist() for name in self._limits}

    def as_of(self, entity_id: Any, time_us: int) -> Row:
        """The features that were known and fresh enough."""
        code = self._codes.get(entity_id)
        if code is None:
            return {}
        start, stop = self._starts[code], self._starts[code + 1]
        place = int(start + np.searchsorted(self._since[start:stop], time_us, side="right")) - 1
        if place < start:
            return {}
        age_s = (time_us - int(self._since[place])) / 1e6
        return {
            name: value
            for name, limit in self._limits.items()
            if (value := self._values[name][place]) is not None and (limit is None or age_s <= limit)
        }


class Histories:
    """Of all entities of a job."""

    def __init__(self, files: Mapping[str, str], description: Description, moment: str) -> None:
        """`files`: by entity; `moment`: the input's column with each row's time. Raises UserError."""
        self.columns = {*files, moment}
        self._moment = moment
        limits_s = {entity: description.stored(entity) for entity in files}
        self._histories = {
            entity: History(read(entity, text), entity, limits_s[entity]) for entity, text in files.items()
        }

    def of(self, block: Block) -> list[Row | str]:
        """What is known of each row's entities at its time; a str, the reason, for a row without a time."""
        times = times_of(block, self._moment)
        ids = {entity: block.values(entity) for entity in self._histories}
        return [self._row(i, time_us, ids) if isinstance(time_us, int) else time_us for i, time_us in enumerate(times)]

    def _row(self, place: int, time_us: int, ids: Mapping[str, Sequence[Any]]) -> Row:
        found: Row = {}
        for entity, history in self._histories.items():
            if ids[entity][place] is not None:
                found.update(history.as_of(ids[entity][place], time_us))
        return found


def read(entity: str, text: str) -> pa.Table:
    """Raises UserError for a file that is no history."""
    place = place_of(text)
    try:
        table = pq.read_table(place.path, filesystem=place.filesystem)
    except (OSError, pa.ArrowException) as err:
        raise UserError(f"--features {entity}={text}: {' '.join(str(err).split())}") from err
    for column in (entity, SINCE):
        if column not in table.column_names:
            raise UserError(f"--features {entity}={text}: no column {column!r}; there are: {table.column_names}")
        if table[column].null_count:
            raise UserError(f"--features {entity}={text}: {column} is null in {table[column].null_count} rows")
    return table


def moments(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Microseconds since 1970; a time without a zone is UTC. Raises UserError."""
    if not pa.types.is_timestamp(column.type) and not pa.types.is_date(column.type):
        raise UserError(f"{SINCE}: expected a timestamp, got {column.type}")
    return np.asarray(pc.cast(in_utc(column), MOMENT).cast(pa.int64()))


def in_utc(column: Any) -> Any:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    return pc.assume_timezone(column, "UTC") if column.type.tz is None else column


def times_of(block: Block, column: str) -> list[int | str]:
    """Microseconds since 1970 of each row, or why it has none."""
    if isinstance(block, ArrowBlock) and pa.types.is_temporal(block.array(column).type):
        found = pc.cast(in_utc(block.array(column)), MOMENT).cast(pa.int64()).to_pylist()
        return [missing(column) if value is None else value for value in found]
    return [moment(value, column) for value in block.values(column)]


def moment(value: Any, column: str) -> int | str:
    """From ISO 8601 text, or seconds since 1970."""
    if value is None:
        return missing(column)
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            parsed = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return f"{column}: expected a time such as 2024-05-01T12:00:00Z, got {value!r}"
        seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    return round(seconds * 1e6)


def missing(column: str) -> str:
    return f"{column}: the row has no time, which says what was known of its entities"
