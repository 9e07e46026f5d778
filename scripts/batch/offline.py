"""Stored features as they were at a moment: entities' histories in Parquet, joined to rows without looking ahead.

A history has a column with the entity's id, named like the entity, a column `time` that says since when the row's
values were known, and a column per feature (handlers/features/as_of.py, as training joins). What the input's row itself
brings goes first, as it does online.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from marctl.batch.formats.block import ArrowBlock, Block
from marctl.batch.places import place_of
from marctl.core.errors import UserError

TIME = "time"
MOMENT = pa.timestamp("us", tz="UTC")
Row = dict[str, Any]


class Histories:
    """Of all entities of a job. In an actor, the join is the archive's own."""

    def __init__(self, files: Mapping[str, str], specification: Any, moment: str) -> None:
        """`files`: by entity; `specification`: the version's; `moment`: the input's column with each row's time.

        Raises UserError.
        """
        self.columns = {*files, moment}
        self._moment, self._specification = moment, specification
        self._tables = {entity: read(entity, text) for entity, text in files.items()}

    def of(self, block: Block) -> list[Row | str]:
        """What is known of each row's entities at its time; a str, the reason, for a row without a time."""
        times = times_of(block, self._moment)
        found: list[Row | str] = [time if isinstance(time, str) else {} for time in times]
        for entity in self._tables:
            self._join(entity, block.values(entity), times, found)
        return found

    def _join(self, entity: str, ids: list[Any], times: list[float | str], found: list[Any]) -> None:
        from marctl_handlers.features.as_of import as_of

        asked = [(i, time) for i, time in enumerate(times) if not isinstance(time, str) and ids[i] is not None]
        named, times_s = [ids[i] for i, _ in asked], [time for _, time in asked]
        known = as_of(self._tables[entity], self._specification, entity, named, times_s)
        for (place, _), row in zip(asked, known.to_pylist(), strict=True):
            found[place].update((name, value) for name, value in row.items() if value is not None)


def read(entity: str, text: str) -> pa.Table:
    """Raises UserError for a file that is no history."""
    place = place_of(text)
    try:
        table = pq.read_table(place.path, filesystem=place.filesystem)
    except (OSError, pa.ArrowException) as err:
        raise UserError(f"--features {entity}={text}: {' '.join(str(err).split())}") from err
    for column in (entity, TIME):
        if column not in table.column_names:
            raise UserError(f"--features {entity}={text}: no column {column!r}; there are: {table.column_names}")
    return table


def in_utc(column: Any) -> Any:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    return pc.assume_timezone(column, "UTC") if column.type.tz is None else column


def times_of(block: Block, column: str) -> list[float | str]:
    """Seconds since 1970 of each row, or why it has none."""
    if isinstance(block, ArrowBlock) and pa.types.is_temporal(block.array(column).type):
        found = pc.cast(in_utc(block.array(column)), MOMENT).cast(pa.int64()).to_pylist()
        return [missing(column) if value is None else value / 1e6 for value in found]
    return [moment(value, column) for value in block.values(column)]


def moment(value: Any, column: str) -> float | str:
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
    return seconds


def missing(column: str) -> str:
    return f"{column}: the row has no time, which says what was known of its entities"
