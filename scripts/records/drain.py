"""From the streams to Parquet files. Killed at any moment and started again, it neither loses nor doubles a record."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from scripts.core.errors import UserError
from scripts.records import position
from scripts.records.kinds import KINDS, Entry, Kind, next_id, pyarrow
from scripts.records.position import Position
from scripts.records.streams import Redis, between, identity, newest, value

STEP_RECORDS = 20_000
"""Of one step, and so of one file."""
POLL_S = 1.0
DRAINER = "marctl:{log}:drain"
DRAINER_MS = 30_000
UNFINISHED = "_unfinished.parquet"

Notify = Callable[[str], None]


class Busy(UserError):
    """Another drain is at it."""


@dataclass(frozen=True)
class Drained:
    """What came out so far. `rejected`: stream entries that are no record; they are in no file."""

    predictions: int = 0
    labels: int = 0
    files: int = 0
    rejected: int = 0

    def __add__(self, other: Drained) -> Drained:
        return Drained(
            self.predictions + other.predictions,
            self.labels + other.labels,
            self.files + other.files,
            self.rejected + other.rejected,
        )


def drain(client: Redis, folder: Path, step_records: int = STEP_RECORDS) -> Drained:
    """Everything that is in the streams now. Raises Busy, UserError, redis.RedisError."""
    with alone(client, folder):
        return drain_streams(client, folder, step_records)


def follow(client: Redis, folder: Path, every_s: float, notify: Notify, step_records: int = STEP_RECORDS) -> None:
    """Drain for ever: every so many seconds, or as soon as a step is full."""
    with alone(client, folder):
        drained_at, away, total = 0.0, False, Drained()
        while True:
            try:
                claim(client, folder)
                full = any(client.xlen(kind.stream) >= step_records for kind in KINDS)
                if full or time.monotonic() - drained_at >= every_s:
                    done = drain_streams(client, folder, step_records)
                    drained_at, total = time.monotonic(), total + done
                    if done != Drained():
                        notify(f"{done.predictions} predictions and {done.labels} labels; {total.predictions} in all")
                if away:
                    notify("Redis is back")
                away = False
            except redis.RedisError as err:
                if not away:
                    notify(f"warning: Redis does not answer ({type(err).__name__}); waiting for it")
                away = True
            time.sleep(min(POLL_S, every_s))


def drain_streams(client: Redis, folder: Path, step_records: int) -> Drained:
    total = Drained()
    for kind in KINDS:
        for done in drain_stream(client, folder / kind.name, kind, step_records):
            claim(client, folder)
            total += done
    return total


def drain_stream(client: Redis, folder: Path, kind: Kind, step_records: int) -> Iterator[Drained]:
    """One step after the other, as far as the stream reaches now."""
    here = where(client, folder)
    last = [entry_id for entry_id, _ in newest(client, kind.stream)]
    while last and (raw := between(client, kind.stream, next_id(here.done), last[0], step_records)):
        entries = kind.decode_all(raw)
        files = write(folder, kind, entries, here)
        here = Position(here.stream, raw[-1][0])
        position.save(folder, here)
        client.xtrim(kind.stream, minid=next_id(here.done), approximate=False)
        yield Drained(**{kind.name: len(entries)}, files=len(files), rejected=len(raw) - len(entries))


def where(client: Redis, folder: Path) -> Position:
    """Where to go on; what a killed step has left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = identity(client)
    found = position.load(folder)
    if found is None or found.stream != stream:
        return Position(stream)  # what was pending then can't be taken again: its files stay
    position.remove_pending(folder, found.pending)
    return Position(stream, found.done)


def write(folder: Path, kind: Kind, entries: Sequence[Entry], here: Position) -> list[str]:
    """A file per partition, announced, then written aside and moved into place; their names below the folder."""
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[kind.partition_of(entry)].append(entry)
    names = {values: file_name(kind, values, group) for values, group in groups.items()}
    position.save(folder, Position(here.stream, here.done, sorted(names.values())))
    for values, group in groups.items():
        write_file(folder, names[values], kind.table(group))
    return sorted(names.values())


def file_name(kind: Kind, values: tuple[str, ...], group: Sequence[Entry]) -> str:
    folders = "/".join(f"{name}={value}" for name, value in zip(kind.partitions, values, strict=True))
    return f"{folders}/{group[0].id}_{group[-1].id}.parquet"


def write_file(folder: Path, name: str, table: Any) -> None:
    import pyarrow.parquet

    unfinished, target = folder / UNFINISHED, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target)
    position.sync(target.parent)


@contextmanager
def alone(client: Redis, folder: Path) -> Iterator[None]:
    """No second drain into this folder, nor of this Redis into another one. Raises Busy."""
    pyarrow()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "_lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise Busy(f"another drain writes to {folder}") from err
        claim(client, folder)
        try:
            yield
        finally:
            release(client, folder)


def claim(client: Redis, folder: Path) -> None:
    """Hold the log for the next half minute; a drain into the same folder that was killed is no obstacle."""
    mine = claim_of(folder)
    holder = value(client, DRAINER)
    if holder not in (None, mine):
        raise Busy(
            f"the log is being drained to {holder.decode(errors='replace')} (host:folder); stop that drain, "
            f"or wait {DRAINER_MS // 1000} s if it has died"
        )
    client.set(DRAINER, mine, px=DRAINER_MS)


def release(client: Redis, folder: Path) -> None:
    try:
        if value(client, DRAINER) == claim_of(folder):
            client.delete(DRAINER)
    except redis.RedisError:
        pass  # it goes by itself


def claim_of(folder: Path) -> bytes:
    return f"{socket.gethostname()}:{folder.resolve()}".encode()
