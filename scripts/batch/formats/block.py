"""Rows that were read: the numbers that they have in their file, and their columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

Mask = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BadRow:
    """A row of which nothing can be computed, and why."""

    row: int
    reason: str


class Block(Protocol):
    """Some rows of one file, in order."""

    @property
    def rows(self) -> Mask:
        """int64, (rows,): their numbers in the file, from 0; a header is not counted."""

    @property
    def bad(self) -> Sequence[BadRow]:
        """Rows that could not be read at all; they are not among `rows`."""

    @property
    def textual(self) -> bool:
        """Values are text, whatever they stand for."""

    def values(self, name: str) -> list[Any]:
        """A column's values as plain Python; None where there is none."""

    def array(self, name: str) -> pa.Array:
        """The same, in the column's one type; null for a value that is of another one."""

    def key(self, name: str) -> pa.Array:
        """The same, to be carried along as it is: text stays text."""

    def where(self, mask: Mask) -> Block:
        """The rows at which `mask` is true."""


@dataclass(frozen=True)
class ArrowBlock:
    """Rows of a file whose columns have types."""

    rows: Mask
    table: pa.Table
    bad: Sequence[BadRow] = ()
    textual: bool = False

    def values(self, name: str) -> list[Any]:
        """NaN counts as no value, as pandas writes it."""
        if name not in self.table.column_names:
            return [None] * len(self.rows)
        column: list[Any] = self.table[name].to_pylist()
        if pa.types.is_floating(self.table.schema.field(name).type):
            return [None if value is None or math.isnan(value) else value for value in column]
        return column

    def array(self, name: str) -> pa.Array:
        column = self.table[name].combine_chunks()
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column

    def key(self, name: str) -> pa.Array:
        return self.array(name)

    def where(self, mask: Mask) -> ArrowBlock:
        return ArrowBlock(self.rows[mask], self.table.filter(pa.array(mask)), self.bad)


@dataclass(frozen=True)
class PlainBlock:
    """Rows of a text file. `types`: what was seen in each column when the file was looked through."""

    rows: Mask
    columns: Mapping[str, list[Any]]
    types: Mapping[str, str]
    textual: bool
    bad: Sequence[BadRow] = field(default_factory=tuple)

    def values(self, name: str) -> list[Any]:
        return self.columns[name]

    def array(self, name: str) -> pa.Array:
        kind = self.types.get(name, "string")
        fit = parsed if self.textual else fitted
        return pa.array([fit(value, kind) for value in self.columns[name]], pa.type_for_alias(kind))

    def key(self, name: str) -> pa.Array:
        return pa.array(self.columns[name], pa.string()) if self.textual else self.array(name)

    def where(self, mask: Mask) -> PlainBlock:
        places = np.flatnonzero(mask)
        columns = {name: [values[i] for i in places] for name, values in self.columns.items()}
        return PlainBlock(self.rows[mask], columns, self.types, self.textual, self.bad)


def fitted(value: Any, kind: str) -> Any:
    """A JSON value as its column's type; None for one of another type."""
    if value is None or isinstance(value, str):
        return value if kind == "string" else None
    if kind == "string":
        return msgspec.json.encode(value).decode()
    if kind == "bool":
        return value if value is True or value is False else None
    if isinstance(value, bool) or not isinstance(value, int if kind == "int64" else int | float):
        return None
    return value if kind == "double" or -(1 << 63) <= value < 1 << 63 else None


def parsed(cell: str | None, kind: str) -> Any:
    """A cell as its column's type; None for one that is no number."""
    if cell is None or kind == "string":
        return cell
    try:
        return float(cell)
    except ValueError:
        return None


def kind_of(values: Sequence[Any]) -> str:
    """The one type for some JSON values; text where they have none in common."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "bool"
    if kinds and kinds <= {int, float}:
        return "int64" if kinds == {int} else "double"
    return "string"
