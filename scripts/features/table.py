"""Files of feature values, CSV or Parquet, read as a specification says; every fault is told with its row and column.

Rows are counted from 1, headings aside. A column has the name of its feature, the ids that of their entity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl_handlers.features import Feature, Specification
from marctl_handlers.features.entity import Entity, told_id
from marctl_handlers.features.specification import told, value_fault
from marctl_handlers.features.stored import AHEAD_S, BOOLEANS

MOST_FAULTS = 50
"""Told of one file."""
BLOCK_BYTES = 8 << 20
TIME_COLUMN = "time"


class TableInvalid(UserError):
    """The file cannot be read, or its content is not as the specification says."""


@dataclass(frozen=True)
class Row:
    """One entity at one time. `values` are those of the table's features, None for a missing one."""

    number: int
    entity_id: int | str
    time_s: float | None
    """Since 1970; None where the file says none."""
    values: list[Any]


class Table:
    """A file and what of it is read."""

    def __init__(self, path: Path, specification: Specification, entity: Entity, time_column: str | None) -> None:
        """Raises TableInvalid for a file without the ids, the times or any of the entity's features."""
        self.path = path
        self.entity = entity
        columns = columns_of(path)
        self.time_column = time_column or (TIME_COLUMN if TIME_COLUMN in columns else None)
        self.features = [f for f in specification.stored(entity.name) if f.name in columns]
        wanted = [entity.name, *([self.time_column] if self.time_column else [])]
        faults = [f"no column {name}" for name in wanted if name not in columns]
        faults += [
            f"column {name} stands {columns.count(name)} times" for name in {*columns} if columns.count(name) > 1
        ]
        if not self.features:
            names = ", ".join(feature.name for feature in specification.stored(entity.name))
            faults.append(f"no column of a feature of {entity.name}; there is {names}")
        if faults:
            raise TableInvalid(listed(path, faults))
        self.passed_over = [name for name in columns if name not in {*wanted, *(f.name for f in self.features)}]
        self._columns = [*dict.fromkeys([*wanted, *(f.name for f in self.features)])]
        self._is_text = is_csv(path)

    def rows(self) -> Iterator[Row]:
        """Raises TableInvalid listing the faults, when all rows have been read."""
        faults: list[str] = []
        more = 0
        for number, cells in enumerate(self._cells(), 1):
            row, found = self._row(number, cells)
            faults += [f"row {number}, {column}: {text}" for column, text in found[: MOST_FAULTS - len(faults)]]
            more += len(found)
            if not found:
                yield row
        if more:
            rest = [f"and {more - len(faults):,} more"] if more > len(faults) else []
            raise TableInvalid(listed(self.path, [*faults, *rest]))

    def _cells(self) -> Iterator[dict[str, Any]]:
        import pyarrow as pa

        try:
            for batch in batches(self.path, self._columns):
                columns = [column.to_pylist() for column in batch.columns]
                yield from (dict(zip(self._columns, cells, strict=True)) for cells in zip(*columns, strict=True))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
            raise unreadable(self.path, err) from err

    def _row(self, number: int, cells: dict[str, Any]) -> tuple[Row, list[tuple[str, str]]]:
        faults: list[tuple[str, str]] = []
        entity_id = self._read(cells[self.entity.name], int if self.entity.type == "integer" else str)
        if fault := self.entity.id_fault(entity_id):
            faults.append((self.entity.name, fault))
        time_s = None
        if self.time_column is not None:
            time_s = seconds_of(cells[self.time_column])
            if time_s is None:
                faults.append((self.time_column, f"expected a time, got {told_id(plain(cells[self.time_column]))}"))
        values = [self._value(feature, cells[feature.name]) for feature in self.features]
        for feature, value in zip(self.features, values, strict=True):
            if value is not None and (fault := value_fault(feature, value)):
                faults.append((feature.name, fault))
        return Row(number, entity_id, time_s, values), faults

    def _value(self, feature: Feature, cell: Any) -> Any:
        value = self._read(cell, READERS[feature.type])
        if isinstance(value, Decimal):
            value = float(value)
        return None if value is None or value != value else value

    def _read(self, cell: Any, read: Callable[[str], Any]) -> Any:
        """A cell of a text file as what it stands for; as it is where it stands for none."""
        if not self._is_text or cell is None:
            return cell
        try:
            return read(cell)
        except (ValueError, KeyError):
            return cell


READERS: dict[str, Callable[[str], Any]] = {
    "number": float,
    "integer": float,
    "boolean": lambda text: BOOLEANS[text.encode()],
    "category": str,
}


def seconds_of(cell: Any) -> float | None:
    """A time as seconds since 1970: a number of them, a date, or text in ISO 8601, in UTC where it names no zone."""
    try:
        if isinstance(cell, str):
            cell = float(cell) if cell.replace(".", "", 1).isdigit() else datetime.fromisoformat(cell)
        if isinstance(cell, date) and not isinstance(cell, datetime):
            cell = datetime(cell.year, cell.month, cell.day, tzinfo=UTC)
        if isinstance(cell, datetime):
            cell = (cell if cell.tzinfo else cell.replace(tzinfo=UTC)).timestamp()
        ahead = datetime.now(UTC).timestamp() + AHEAD_S
        return float(cell) if 0 <= cell <= ahead else None
    except (TypeError, ValueError, OverflowError):
        return None


def plain(cell: Any) -> Any:
    return cell if isinstance(cell, str | int | float | None) else str(cell)


def is_csv(path: Path) -> bool:
    """Raises TableInvalid for a name of neither kind."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise TableInvalid(f"{path}: expected a name that ends in .csv or .parquet")
    return path.suffix.lower() == ".csv"


def columns_of(path: Path) -> list[str]:
    """Raises TableInvalid."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if is_csv(path):
            with csv.open_csv(path) as file:
                return list(file.schema.names)
        return list(parquet.read_schema(path).names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        raise unreadable(path, err) from err


def batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Of all rows, these columns; those of a CSV file as text."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if is_csv(path):
        texts = csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        )
        with csv.open_csv(path, csv.ReadOptions(block_size=BLOCK_BYTES), convert_options=texts) as file:
            yield from file
    else:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(columns=list(columns))


def unreadable(path: Path, err: Exception) -> TableInvalid:
    return TableInvalid(f"{path} cannot be read: {getattr(err, 'strerror', None) or told(str(err))}")
