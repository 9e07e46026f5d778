"""Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from marctl.batch.formats.block import ArrowBlock, Block
from marctl.batch.formats.scan import Chunks, Scan
from marctl.batch.places import Place
from marctl.core.errors import UserError

READ_ROWS = 16_384


def scan(place: Place) -> Scan:
    chunks = Chunks(place)
    for _ in chunks:
        pass
    with opened(place) as file:
        columns = {field.name: str(field.type) for field in file.schema_arrow}
        return Scan(file.metadata.num_rows, chunks.sha256, columns, [])


def read(place: Place, start: int, stop: int, columns: Sequence[str], **_: Any) -> Block:
    """Rows from `start` up to `stop`; of a row group the rows before are decoded, too, and left out."""
    with opened(place) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        parts = list(slices(file, start, stop, there))
        schema = pa.schema([file.schema_arrow.field(name) for name in there])
        table = pa.Table.from_batches(parts, schema) if there else None
    rows = np.arange(start, stop, dtype=np.int64)
    return ArrowBlock(rows, table if table is not None else pa.table({}))


def slices(file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if first < stop and start < first + count:
            at = first
            for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=list(columns)):
                low, high = max(start - at, 0), min(stop - at, len(batch))
                if low < high:
                    yield batch.slice(low, high - low)
                at += len(batch)
                if at >= stop:
                    break
        first += count


def ruled_out(place: Place, expression: Any) -> list[tuple[int, int]]:
    """Row ranges that cannot meet a condition, by the statistics of their row groups."""
    fragment = pads.ParquetFileFormat().make_fragment(place.path, place.filesystem)
    kept = {info.id for part in fragment.split_by_row_group(expression) for info in part.row_groups}
    ranges, first = [], 0
    for info in fragment.row_groups:
        if info.id not in kept:
            ranges.append((first, first + info.num_rows))
        first += info.num_rows
    return ranges


def opened(place: Place) -> pq.ParquetFile:
    """Raises UserError for what is no Parquet file."""
    try:
        return pq.ParquetFile(place.path, filesystem=place.filesystem)
    except pa.ArrowInvalid as err:
        raise UserError(f"{place.shown}: no whole Parquet file ({' '.join(str(err).split())})") from err
