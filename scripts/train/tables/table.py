"""Labelled tables: CSV or Parquet files with a column for each feature, and one with the true label."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from marctl.core.errors import UserError
from marctl_handlers.core.task import Task
from marctl_handlers.features import Specification, arrow_schema
from marctl_handlers.features.tables import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".parquet")
SHOWN = 3
FEATURES = "features"
"""The field of a question that holds a row's features."""


@dataclass(frozen=True)
class LabelledTable:
    """`features` has a column for each feature that may be sent; `labels` the place of each row's label."""

    path: Path
    sha256: str
    features: pa.Table
    labels: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.intp]) -> LabelledTable:
        return LabelledTable(self.path, self.sha256, self.features.take(rows), self.labels[rows])


def is_table(path: Path) -> bool:
    return path.suffix in SUFFIXES


def read_table(path: Path, specification: Specification, target: str, labels: Sequence[str]) -> LabelledTable:
    """Raises UserError telling what is wrong with the file."""
    content = content_of(path)
    if target in specification.by_name:
        raise UserError(f"{path}: the target {target} is a feature, too; take it out of the specification")
    table = whole_table(path, content, specification, target)
    if not table.num_rows:
        raise UserError(f"{path}: no rows; expected one a case below the columns' names")
    places = label_places(path, table.column(target).to_pylist(), target, labels)
    names = [feature.name for feature in specification.sent]
    return LabelledTable(path, hashlib.sha256(content).hexdigest(), table.select(names), places)


def questions_of(table: LabelledTable, specification: Specification, task: type[Task[Any, Any]]) -> list[Any]:
    """Each row as a request would bring it."""
    rows = rows_of(table.features, specification)
    return [msgspec.convert({FEATURES: row}, task.question_type) for row in rows]


def content_of(path: Path) -> bytes:
    """Raises UserError."""
    if path.is_dir() or not is_table(path):
        there = [str(path / found.name) for found in sorted(path.glob("*")) if is_table(found)] if path.is_dir() else []
        hint = f", such as {there[0]}" if there else ""
        raise UserError(f"{path}: expected a table, a file named *{' or *'.join(SUFFIXES)}{hint}")
    try:
        content = path.read_bytes()
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}; expected a table of labelled rows") from err
    if not content.strip():
        raise UserError(f"{path}: the file is empty; expected a line of columns' names, and a row a line below it")
    return content


def whole_table(path: Path, content: bytes, specification: Specification, target: str) -> pa.Table:
    """The columns of features and of the target, typed. Raises UserError."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    schema = arrow_schema(specification)
    wanted = dict(zip(schema.names, schema.types, strict=True)) | {target: pa.string()}
    try:
        if path.suffix == ".parquet":
            names = parquet.read_schema(BytesIO(content)).names
            refuse_names(path, names, list(wanted))
            return typed(path, parquet.read_table(BytesIO(content), columns=list(wanted)), wanted)
        refuse_names(path, header(content), list(wanted))
        options = arrow_csv.ConvertOptions(
            column_types=wanted, include_columns=list(wanted), null_values=[""], strings_can_be_null=True
        )
        return arrow_csv.read_csv(BytesIO(content), convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: {' '.join(str(err).split())}") from err


def header(content: bytes) -> list[str]:
    """A CSV file's column names. Raises UnicodeDecodeError."""
    first = content.decode("utf-8-sig", errors="strict").lstrip("\r\n")
    return next(csv.reader(StringIO(first)), [])


def refuse_names(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise UserError for a column that is missing, or that stands more than once."""
    counts = Counter(names)
    if twice := [name for name in wanted if counts[name] > 1]:
        raise UserError(f"{path}: the column {', '.join(twice)} stands more than once; which one is meant?")
    if missing := [name for name in wanted if name not in counts]:
        there = ", ".join(names) or "none"
        raise UserError(f"{path}: no column {', '.join(missing)}; there are: {there}")


def typed(path: Path, table: pa.Table, wanted: dict[str, Any]) -> pa.Table:
    """Integers as numbers, dictionaries as text. Raises UserError naming the column that is of another type."""
    import pyarrow as pa

    columns = {}
    for name, kind in wanted.items():
        try:
            columns[name] = table.column(name).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
            raise UserError(f"{path}: column {name}: {' '.join(str(err).split())}") from err
    return pa.table(columns)


def label_places(path: Path, values: Sequence[str | None], target: str, labels: Sequence[str]) -> NDArray[np.intp]:
    """The place of each row's label. Raises UserError for rows without one, or with one of another name."""
    place = {label: i for i, label in enumerate(labels)}
    odd = [(row, value) for row, value in enumerate(values, 1) if value not in place]
    if odd:
        some = ", ".join(f"row {row}: {'nothing' if value is None else repr(value)}" for row, value in odd[:SHOWN])
        more = f" and {len(odd) - SHOWN:,} more" if len(odd) > SHOWN else ""
        raise UserError(
            f"{path}: {target} must be one of {', '.join(labels)} in every row; {some}{more} (the first row is 1)"
        )
    return np.array([place[str(value)] for value in values], np.intp)


def refuse_rare(table: LabelledTable, target: str, labels: Sequence[str], least: int) -> None:
    """Raise UserError unless each label has as many rows as there are folds."""
    for i, label in enumerate(labels):
        count = int((table.labels == i).sum())
        if count < least:
            raise UserError(
                f"{table.path}: {count} of {len(table):,} rows have the {target} {label}; training needs at least "
                f"{least}, one a fold"
            )
