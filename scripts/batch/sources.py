"""The input files of a job: found, looked through once, and cut into ranges of rows that can be read apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from marctl.batch.formats import delimited, jsonl, parquet
from marctl.batch.formats.block import Block
from marctl.batch.formats.scan import Scan
from marctl.batch.job import Source
from marctl.batch.places import Place, find_files, info_of, place_of
from marctl.core.errors import UserError

FORMATS: Mapping[str, ModuleType] = {
    ".parquet": parquet,
    ".pq": parquet,
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".csv": delimited,
    ".tsv": delimited,
}
PARQUET, DELIMITED = (".parquet", ".pq"), (".csv", ".tsv")
PACKED = (".gz", ".bz2", ".zst", ".xz", ".zip")


class InputChanged(UserError):
    """A file is no longer what it was when the job began."""


@dataclass(frozen=True)
class Scanned:
    """A source with the byte offsets of its rows, if it is a text file."""

    source: Source
    marks: Sequence[int]


def scan_all(texts: Sequence[str]) -> list[Scanned]:
    """Every input file, looked through. Raises UserError."""
    return [scan(place) for place in find_files(texts)]


def scan(place: Place) -> Scanned:
    name = format_of(place)
    try:
        found: Scan = FORMATS[name].scan(place)
        size = info_of(place).size
    except OSError as err:
        raise UserError(f"{place.shown}: {err.strerror or err}") from err
    columns = found.columns
    return Scanned(Source(place.text, place.shown, name, size, found.sha256, found.rows, columns), found.marks)


def format_of(place: Place) -> str:
    """By the end of its name. Raises UserError."""
    name = place.shown.lower()
    if packed := next((end for end in PACKED if name.endswith(end)), None):
        raise UserError(f"{place.shown}: a {packed} file cannot be read in parts; unpack it, or convert it to Parquet")
    found = next((end for end in FORMATS if name.endswith(end)), None)
    if found is None:
        raise UserError(f"{place.shown}: expected a file named {', '.join(f'*{end}' for end in FORMATS)}")
    return found


@dataclass(frozen=True)
class Range:
    """Rows of one source: numbers, and of a text file the bytes that hold them."""

    start: int
    stop: int
    offset: int = 0
    end: int = 0


def read(source: Source, rows: Range, columns: Sequence[str]) -> Block:
    """The rows, with these columns. Raises InputChanged if the file was replaced since the job was planned."""
    place = place_of(source.place)
    before = info_of(place)
    options = {} if source.format in PARQUET else text_options(source, rows)
    try:
        block: Block = FORMATS[source.format].read(place, rows.start, rows.stop, columns, **options)
    except (OSError, UserError) as err:
        raise InputChanged(f"{source.name}: cannot be read any more: {err}") from err
    after = info_of(place)
    if before.size != source.bytes or (before.size, before.mtime_ns) != (after.size, after.mtime_ns):
        raise InputChanged(f"{source.name} changed while the job ran; start it again, and it tells what to do")
    return block


def text_options(source: Source, rows: Range) -> dict[str, object]:
    return {"offset": rows.offset, "end": rows.end, "types": source.columns}
