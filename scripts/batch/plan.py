"""Cuts a job into units: ranges of rows, each computed and committed as a whole. The same job gives the same units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct

from marctl.batch.formats import parquet
from marctl.batch.formats.block import Mask
from marctl.batch.formats.scan import STEP_ROWS
from marctl.batch.job import Job, Source
from marctl.batch.places import place_of
from marctl.batch.sources import PARQUET, Range, Scanned, read
from marctl.batch.where import Condition

MOST_UNIT_ROWS = 16_384
"""A unit is what a kill can cost, and a file of the output: at most so many rows ..."""
FEWEST_UNIT_ROWS = 512
"""... at least so many ..."""
UNITS = 64
"""... and as many units as keep several actors busy to the end."""
GOLDEN = 0x9E3779B97F4A7C15


class Unit(Struct, frozen=True):
    """Some rows of one source. `take`: at most so many of those that the job selects; None for all."""

    number: int
    source: int
    start: int
    stop: int
    offset: int = 0
    end: int = 0
    take: int | None = None

    @property
    def rows(self) -> Range:
        return Range(self.start, self.stop, self.offset, self.end)


def unit_rows_for(rows: int) -> int:
    """Rows of a unit, where the user names no number."""
    wanted = min(max(rows // UNITS, FEWEST_UNIT_ROWS), MOST_UNIT_ROWS)
    return wanted // STEP_ROWS * STEP_ROWS


def plan(job: Job, scanned: Sequence[Scanned]) -> list[Unit]:
    """The units, numbered in the order of files and rows."""
    condition = Condition(job.where) if job.where else None
    ranges = [
        (number, rows)
        for number, one in enumerate(scanned)
        for rows in ranges_of(one, job.unit_rows, ruled_out(one.source, condition))
    ]
    units = limited(job, ranges) if job.limit is not None else ((number, rows, None) for number, rows in ranges)
    return [
        Unit(i, number, rows.start, rows.stop, rows.offset, rows.end, take)
        for i, (number, rows, take) in enumerate(units)
    ]


def ranges_of(scanned: Scanned, unit_rows: int, excluded: Sequence[tuple[int, int]]) -> Iterator[Range]:
    total, marks = scanned.source.rows, scanned.marks
    for start in range(0, total, unit_rows):
        stop = min(start + unit_rows, total)
        if any(low <= start and stop <= high for low, high in excluded):
            continue
        if not marks:
            yield Range(start, stop)
        else:
            yield Range(start, stop, marks[start // STEP_ROWS], marks[min(-(-stop // STEP_ROWS), len(marks) - 1)])


def ruled_out(source: Source, condition: Condition | None) -> list[tuple[int, int]]:
    """Neighbouring row ranges of a Parquet file whose statistics rule the condition out, joined."""
    if condition is None or source.format not in PARQUET or condition.columns - source.columns.keys():
        return []
    joined: list[tuple[int, int]] = []
    for low, high in parquet.ruled_out(place_of(source.place), condition.expression):
        if joined and joined[-1][1] == low:
            low = joined.pop()[0]
        joined.append((low, high))
    return joined


def limited(job: Job, ranges: Sequence[tuple[int, Range]]) -> Iterator[tuple[int, Range, int]]:
    """Ranges until the limit is reached; with a condition, its columns are read for it."""
    left = job.limit or 0
    for number, rows in ranges:
        if left <= 0:
            return
        count = selected_count(job, job.sources[number], rows)
        if count:
            yield number, rows, min(count, left)
            left -= count


def selected_count(job: Job, source: Source, rows: Range) -> int:
    if job.where is None:
        return int(sampled(job, source, np.arange(rows.start, rows.stop)).sum())
    condition = Condition(job.where)
    block = read(source, rows, sorted(condition.columns))
    mask = condition.mask({name: block.array(name) for name in condition.columns})
    return int((mask & sampled(job, source, block.rows)).sum())


def sampled(job: Job, source: Source, rows: Mask) -> Mask:
    """bool, (rows,): the drawn share; the same rows of a file whenever it is asked."""
    if job.sample is None:
        return np.ones(len(rows), bool)
    seed = np.uint64(int(source.sha256[:16], 16))
    mixed = mix(rows.astype(np.uint64) * np.uint64(GOLDEN) + seed)
    drawn: Mask = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53) < job.sample
    return drawn


def mix(values: Mask) -> Mask:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014): every bit of the number depends on every other."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    mixed: Mask = values ^ (values >> np.uint64(31))
    return mixed
