"""JSON lines: an object a line. A row's number is its line's, from 0; blank lines are no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from marctl.batch.formats.block import BadRow, Block, PlainBlock, kind_of
from marctl.batch.formats.scan import STEP_ROWS, Chunks, Scan, first_bytes, read_bytes
from marctl.batch.places import Place

BOM = b"\xef\xbb\xbf"
LOOKED_AT = 1000
"""Rows whose values tell a column's type."""


def scan(place: Place) -> Scan:
    chunks, marks, rows, size = Chunks(place), [0], 0, 0
    ended = True
    for chunk in chunks:
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + 1
        first = -(rows + 1) % STEP_ROWS
        marks += (ends[first::STEP_ROWS] + size).tolist()
        rows += len(ends)
        size += len(chunk)
        ended = chunk.endswith(b"\n")
    rows += not ended
    if marks[-1] != size:
        marks.append(size)
    return Scan(rows, chunks.sha256, columns_of(first_bytes(place)), marks)


def columns_of(content: bytes) -> dict[str, str]:
    found: dict[str, list[Any]] = {}
    for line in content.removeprefix(BOM).split(b"\n")[:LOOKED_AT]:
        row = decoded(line)
        for name, value in row.items() if isinstance(row, dict) else ():
            found.setdefault(name, []).append(value)
    return {name: kind_of(values) for name, values in found.items()}


def read(
    place: Place, start: int, stop: int, columns: Sequence[str], *, offset: int, end: int, types: Mapping[str, str]
) -> Block:
    lines = read_bytes(place, offset, end).removeprefix(BOM if not start else b"").split(b"\n")
    numbers, rows, bad = [], [], []
    for number, line in zip(range(start, stop), lines, strict=False):
        row = decoded(line)
        if isinstance(row, dict):
            numbers.append(number)
            rows.append(row)
        elif row is not None:
            bad.append(BadRow(number, row))
    values = {name: [row.get(name) for row in rows] for name in columns}
    return PlainBlock(np.array(numbers, np.int64), values, types, False, bad)


def decoded(line: bytes) -> dict[str, Any] | str | None:
    """The row, or what is wrong with it, or None for a blank line."""
    if not line.strip():
        return None
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        return f"not JSON: {err}"
    return row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"
