"""The Parquet files of a folder: written whole or not at all, merged while they are small, removed by the day.

A merged file names the files that it was made of. Readers leave those out from the moment it is in place; they are
removed some minutes later, so that whoever is reading them can finish.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from marctl.core.files import sync
from marctl.records.kinds import KINDS, pyarrow

if TYPE_CHECKING:
    import pyarrow as pa

UNFINISHED, MERGED = "_unfinished.parquet", "merged-"
SOURCES = b"marctl.sources"
QUARANTINE = "_quarantine"
FEW = 16
"""So many files of a similar size are merged into one."""
LARGE_BYTES = 128 << 20
"""A file of this size is not merged again."""
GRACE_S = 600.0
"""How long files stay that were merged into another one."""
SETTLED_S = 3600.0
"""A past day without a new file for so long gets one file."""


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Put a file in place, durably. Raises OSError."""
    with write_aside(folder, name) as file:
        pyarrow("parquet").write_table(table, file, compression="zstd")


def write_lines(folder: Path, name: str, lines: Sequence[bytes]) -> None:
    """Put a file of JSON lines in place, durably. Raises OSError."""
    with write_aside(folder, name) as file:
        file.writelines(line + b"\n" for line in lines)


@contextmanager
def write_aside(folder: Path, name: str) -> Iterator[BinaryIO]:
    """The file to write; in place, durably, at the end of the block unless that raises."""
    unfinished, target = folder / UNFINISHED, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target)
    sync(target.parent)


def listed(folder: Path, pending: Collection[str] = ()) -> list[Path]:
    """The files to read, in order: without those that were merged into another one, and without pending ones."""
    left_out = {folder / name for name in pending}
    while True:
        found = scan(folder)
        superseded = {path.parent / name for path in found for name in sources_of(path)}
        if found == scan(folder):
            return [path for path in found if path not in superseded and path not in left_out]


def scan(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("[!_]*.parquet") if QUARANTINE not in path.parts)


def sources_of(path: Path) -> list[str]:
    """Names of the files in the same folder that this one was merged from."""
    if not path.name.startswith(MERGED):
        return []
    try:
        metadata = pyarrow("parquet").read_schema(path).metadata or {}
    except FileNotFoundError:
        return []
    return msgspec.json.decode(metadata.get(SOURCES, b"[]"), type=list[str])


def compact(folder: Path, now: float | None = None) -> int:
    """Merge small files, by folder, and remove what was merged a while ago; returns how many files were merged.

    `folder`: of one kind, with nothing pending. Raises OSError.
    """
    now = time.time() if now is None else now
    merged = 0
    for place in sorted({path.parent for path in scan(folder)}):
        remove_superseded(place, now)
        for paths in to_merge(place, now):
            merged += merge(folder, place, paths)
    return merged


def remove_superseded(place: Path, now: float) -> None:
    for path in scan(place):
        old = now - path.stat().st_mtime > GRACE_S
        for name in sources_of(path) if old else ():
            (place / name).unlink(missing_ok=True)


def to_merge(place: Path, now: float) -> Iterator[list[Path]]:
    """Groups of files that should be one: similar small ones, so that no record is rewritten often; all of a past
    day."""
    sizes = {path: path.stat() for path in listed(place)}
    small = [path for path, stat in sizes.items() if stat.st_size < LARGE_BYTES]
    today = datetime.fromtimestamp(now, UTC).date()
    if small and day_of(place) < today and all(now - sizes[path].st_mtime > SETTLED_S for path in small):
        if len(small) > 1:
            yield small
        return
    tiers: dict[int, list[Path]] = defaultdict(list)
    for path in small:
        tiers[sizes[path].st_size.bit_length() // 4].append(path)
    yield from (paths for paths in tiers.values() if len(paths) >= FEW)


def merge(folder: Path, place: Path, paths: Sequence[Path]) -> int:
    """One file of many, row by row in their order; returns how many. None where their columns contradict each other."""
    pa, parquet = pyarrow(), pyarrow("parquet")
    try:
        schema = unified([parquet.read_schema(path) for path in paths])
    except pa.ArrowException:
        return 0
    sources = msgspec.json.encode([path.name for path in paths])
    name = f"{MERGED}{secrets.token_hex(8)}.parquet"
    schema = schema.with_metadata({SOURCES: sources})
    with (
        write_aside(folder, str((place / name).relative_to(folder))) as file,
        parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for path in paths:
            with parquet.ParquetFile(path) as source:
                for batch in source.iter_batches():
                    writer.write_table(fitted(pa.Table.from_batches([batch]), schema))
    return len(paths)


def unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """All columns of all; numbers take the wider type. Raises pyarrow.ArrowException for types without a common one."""
    return pyarrow().unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the schema's columns in its order; those that the table lacks are null."""
    pa = pyarrow()
    columns = [
        table[each.name].cast(each.type) if each.name in table.column_names else pa.nulls(len(table), each.type)
        for each in schema
    ]
    return pa.table(columns, schema=schema)


def day_of(place: Path) -> date:
    """Of a folder of files, from its path; the first day of all where it has none."""
    for part in reversed(place.parts):
        if part.startswith("date="):
            return date.fromisoformat(part.removeprefix("date="))
    return date.min


def days(folder: Path) -> dict[date, list[Path]]:
    """The folders of each day, of all kinds, quarantine included; oldest first."""
    found: dict[date, list[Path]] = defaultdict(list)
    for kind in KINDS:
        for parent in (folder / kind.name, folder / kind.name / QUARANTINE):
            for place in parent.glob("date=*"):
                found[day_of(place)].append(place)
    return dict(sorted(found.items()))


def bytes_of(places: Sequence[Path]) -> int:
    total = 0
    for place in places:
        for path in place.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
    return total


def remove_days(folder: Path, keep_days: float | None, keep_bytes: int | None, today: date) -> list[date]:
    """Remove the oldest days until both limits hold; today stays. Returns the days that are gone."""
    sizes = {day: bytes_of(places) for day, places in days(folder).items()}
    total, gone = sum(sizes.values()), []
    for day, places in days(folder).items():
        too_old = keep_days is not None and (today - day).days > keep_days
        too_much = keep_bytes is not None and total > keep_bytes
        if day >= today or not (too_old or too_much):
            continue
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        total -= sizes[day]
        gone.append(day)
    return gone
