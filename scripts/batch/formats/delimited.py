"""CSV (RFC 4180) and tab-separated values, UTF-8, with a header. Values are text; an empty one is none."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from marctl.batch.formats.block import BadRow, Block, PlainBlock
from marctl.batch.formats.jsonl import BOM, LOOKED_AT
from marctl.batch.formats.scan import STEP_ROWS, Chunks, Scan, first_bytes, lines_of, read_bytes
from marctl.batch.places import Place
from marctl.core.errors import UserError

LONGEST_CELL = 16 << 20
"""Characters; a quote that is never closed makes a cell of all that follows."""


class Counter:
    """Hands lines to a csv.reader, and knows where the one that it has read ends."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.position += len(line)
            yield line.decode("utf-8", "surrogateescape")


def delimiter_of(place: Place) -> str:
    return "\t" if place.shown.endswith(".tsv") else ","


def scan(place: Place) -> Scan:
    csv.field_size_limit(LONGEST_CELL)
    chunks = Chunks(place)
    counter = Counter(lines_of(chunks))
    reader = csv.reader(counter, delimiter=delimiter_of(place))
    header = next(reader, None)
    if not header:
        raise UserError(f"{place.shown}: no header; the first line names the columns")
    marks, rows = [counter.position], 0
    try:
        for _ in reader:
            rows += 1
            if rows % STEP_ROWS == 0:
                marks.append(counter.position)
    except csv.Error as err:
        raise UserError(f"{place.shown}: row {rows}: {err}; is a quote not closed before it?") from err
    if marks[-1] != counter.position:
        marks.append(counter.position)
    return Scan(rows, chunks.sha256, types_of(place, named(place, header)), marks)


def named(place: Place, header: Sequence[str]) -> list[str]:
    """Raises UserError for names that cannot tell columns apart."""
    names = [header[0].removeprefix(BOM.decode()), *header[1:]]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{place.shown}: the header has {', '.join(map(repr, twice))} more than once")
    return names


def types_of(place: Place, names: Sequence[str]) -> dict[str, str]:
    """`double` for a column in which every value of the first rows is a number."""
    lines = first_bytes(place).decode("utf-8", "surrogateescape").splitlines(keepends=True)
    rows = list(csv.reader(lines, delimiter=delimiter_of(place)))[1:LOOKED_AT]
    cells = {name: [row[i] for row in rows if i < len(row) and row[i]] for i, name in enumerate(names)}
    return {name: "double" if found and all(map(is_number, found)) else "string" for name, found in cells.items()}


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def read(
    place: Place, start: int, stop: int, columns: Sequence[str], *, offset: int, end: int, types: Mapping[str, str]
) -> Block:
    """`types`: of all columns, in the file's order."""
    csv.field_size_limit(LONGEST_CELL)
    names = list(types)
    content = read_bytes(place, offset, end)
    reader = csv.reader(Counter(lines_of(iter([content]))), delimiter=delimiter_of(place))
    numbers, rows, bad = [], [], []
    for number in range(start, stop):
        row = next_row(reader, len(names))
        if isinstance(row, str):
            bad.append(BadRow(number, row))
        elif row:
            numbers.append(number)
            rows.append(row)
    places = {name: i for i, name in enumerate(names)}
    values: dict[str, list[Any]] = {
        name: [row[places[name]] or None for row in rows] if name in places else [None] * len(rows) for name in columns
    }
    return PlainBlock(np.array(numbers, np.int64), values, types, True, bad)


def next_row(reader: Iterator[list[str]], width: int) -> list[str] | str:
    """The row, empty for a blank line; or what is wrong with it."""
    try:
        row = next(reader, [])
    except csv.Error as err:
        return f"not CSV: {err}"
    if row and len(row) != width:
        return f"{len(row)} values, but the header names {width} columns"
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    return row
