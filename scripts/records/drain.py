"""From the streams and the spill files to Parquet files.

Killed at any moment and started again, it neither loses nor doubles a record.
"""

from __future__ import annotations

import base64
import fcntl
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import redis
from msgspec.structs import replace

from marctl.core.errors import UserError
from marctl.records import files, position
from marctl.records.declarations import Declarations
from marctl.records.kinds import KINDS, LABEL_KIND, Entry, Kind, Raw, label_type, next_id, pyarrow
from marctl.records.position import Position
from marctl.records.streams import Redis, between, identity, newest, value
from marctl_handlers.redis.log import FIELD
from marctl_handlers.redis.spill import DECLARATION, LABEL, PREDICTION, SUFFIX, Frame, frames_of

STEP_RECORDS = 20_000
"""Of one step, and so of one file."""
DRAINER = "marctl:{log}:drain"
DRAINER_MS = 30_000
WAIT_S, LOCK_POLL_S = 30.0, 0.05
"""For another drain into the same folder, as the running stack's."""
TAKEN = ".taken"
FRAME_KINDS = {"predictions": PREDICTION, "labels": LABEL}

# Atomic, so that of two drains that begin at once only one goes on; the holder's own claim is renewed.
CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Busy(UserError):
    """Another drain is at work."""


@dataclass(frozen=True)
class Drained:
    """What came out so far. `rejected`: entries that are not records, which are in quarantine."""

    predictions: int = 0
    labels: int = 0
    files: int = 0
    rejected: int = 0

    def __add__(self, other: Drained) -> Drained:
        return Drained(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Drained)))


def drain(client: Redis, folder: Path, spill: Path | None = None, step_records: int = STEP_RECORDS) -> Drained:
    """Everything that is in the streams and in the spill folder now. Raises Busy, UserError, OSError,
    redis.RedisError."""
    with alone(folder, WAIT_S):
        try:
            total = drain_streams(client, folder, step_records)
        finally:
            release(client, folder)
        return total + drain_spill(folder, spill, step_records)


def drain_streams(client: Redis, folder: Path, step_records: int = STEP_RECORDS) -> Drained:
    """With the folder to itself. Raises as `drain`."""
    total, declarations = Drained(), Declarations(folder)
    claim(client, folder)
    for kind in KINDS:
        for done in drain_stream(client, folder, kind, declarations, step_records):
            claim(client, folder)
            total += done
    return total


def drain_stream(
    client: Redis, home: Path, kind: Kind, declarations: Declarations, step_records: int
) -> Iterator[Drained]:
    """One step after the other, as far as the stream reaches now."""
    folder = home / kind.name
    here = position.resume_stream(folder, identity(client))
    last = [entry_id for entry_id, _ in newest(client, kind.stream)]
    while last and (raw := between(client, kind.stream, next_id(here.done), last[0], step_records)):
        declarations.learn(client)  # after the entries, which came with theirs or after them
        name = f"{here.stream[:8]}-{raw[0][0]}_{raw[-1][0]}"
        step = Step(folder, kind, name, raw, declarations)
        position.save(folder, replace(here, pending=step.names))
        here = replace(step.write(here), pending=[], done=raw[-1][0])
        position.save(folder, here)
        client.xtrim(kind.stream, minid=next_id(here.done), approximate=False)
        yield step.drained


class Step:
    """Raw entries that go into files together: a file per partition, and one for what cannot be decoded."""

    def __init__(self, folder: Path, kind: Kind, name: str, raw: Sequence[Raw], declarations: Declarations) -> None:
        """`name`: unlike that of any other step into this folder, or equal to that of the same entries."""
        self._folder, self._kind, self._declarations = folder, kind, declarations
        self._sorted = kind.decode_all(raw, declarations)
        groups: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
        for entry in self._sorted.entries:
            groups[kind.partition_of(entry), entry.columns, label_type(entry.record)].append(entry)
        self._groups = {
            f"{place(kind, key[0])}/{name}{f'-{i}' if i else ''}.parquet": (key, group)
            for i, (key, group) in enumerate(groups.items())
        }
        today = datetime.now(UTC).date().isoformat()
        self._quarantine = f"{files.QUARANTINE}/date={today}/{name}.jsonl" if self._sorted.undecodable else None
        self.names = [*self._groups, *([self._quarantine] if self._quarantine else [])]
        counts = {kind.name: len(self._sorted.entries), "rejected": len(self._sorted.undecodable)}
        self.drained = Drained(files=len(self._groups), **counts)

    def write(self, here: Position) -> Position:
        """Put all files in place; returns the position with their records counted. Raises OSError."""
        self._declarations.save()
        for name, ((_, columns, label), group) in self._groups.items():
            files.write_table(self._folder, name, self._kind.table(group, self._kind.schema(columns, label)))
        if self._quarantine:
            lines = [quarantined(raw, why) for raw, why in self._sorted.undecodable]
            files.write_lines(self._folder, self._quarantine, lines)
        numbers = [(entry.record.writer, entry.record.sequence) for entry in self._sorted.entries]
        return here.counting(numbers, self.drained.rejected)


def place(kind: Kind, values: Sequence[str | None]) -> str:
    """A partition's folder; a label without a model lies in its day's."""
    named = zip(kind.partitions, values, strict=True)
    return "/".join(f"{name}={value}" for name, value in named if value is not None)


def quarantined(raw: Raw, why: str) -> bytes:
    """A line of JSON with everything that is known of an entry, its fields in base64."""
    entry_id, content = raw
    fields = {
        name.decode(errors="backslashreplace"): base64.b64encode(value).decode() for name, value in content.items()
    }
    return msgspec.json.encode({"stream_id": entry_id, "why": why, "fields": fields})


def drain_spill(home: Path, spill: Path | None, step_records: int = STEP_RECORDS) -> Drained:
    """All spill files, with the folder to itself; needs no Redis. Raises UserError, OSError."""
    total, declarations = Drained(), Declarations(home)
    for path in take_files(spill) if spill else ():
        frames, torn = frames_of(path.read_bytes())
        for frame in frames:
            if frame.kind == DECLARATION:
                declarations.add(frame.payload)
        for kind in KINDS:
            raw = raw_of(kind, frames, torn)
            for done in drain_taken(home / kind.name, kind, path, raw, declarations, step_records):
                total += done
        path.unlink()
    return total


def take_files(spill: Path) -> list[Path]:
    """Spill files, renamed so that no worker writes to them, with those that a killed drain had taken."""
    for path in sorted(spill.glob("*" + SUFFIX)):
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held while a worker appends, which takes milliseconds
            age_ns = path.stat().st_mtime_ns
            path.rename(path.with_name(f"{path.stem}-{age_ns}{TAKEN}"))
    return sorted(spill.glob("*" + TAKEN))


def raw_of(kind: Kind, frames: Sequence[Frame], torn: bytes) -> list[Raw]:
    """Frames of one kind as a stream has them. What cannot be told apart is given to one kind, for quarantine."""
    raw: list[Raw] = [(None, {FIELD: frame.payload}) for frame in frames if frame.kind == FRAME_KINDS[kind.name]]
    if kind is not LABEL_KIND:
        known = (DECLARATION, PREDICTION, LABEL)
        raw += [(None, {b"unknown": frame.payload}) for frame in frames if frame.kind not in known]
        raw += [(None, {b"torn": torn})] if torn else []
    return raw


def drain_taken(
    folder: Path, kind: Kind, path: Path, raw: Sequence[Raw], declarations: Declarations, step_records: int
) -> Iterator[Drained]:
    """What is not yet in the folder of one taken file, step by step."""
    here = position.resume_spill(folder)
    for start in range(here.spilled.get(path.name, 0), len(raw), step_records):
        step = Step(folder, kind, f"spill-{path.stem}-{start}", raw[start : start + step_records], declarations)
        position.save(folder, replace(here, spill_pending=step.names))
        still_there = {name: count for name, count in here.spilled.items() if (path.parent / name).exists()}
        done = still_there | {path.name: min(start + step_records, len(raw))}
        here = replace(step.write(here), spill_pending=[], spilled=done)
        position.save(folder, here)
        yield step.drained


@contextmanager
def alone(folder: Path, wait_s: float) -> Iterator[None]:
    """No second drain writes to this folder meanwhile. Raises Busy if one does for so long, PyarrowMissing."""
    pyarrow()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "_lock").open("w") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as err:
                if time.monotonic() >= deadline:
                    raise Busy(f"another drain writes to {folder}; try again when it is done") from err
                time.sleep(LOCK_POLL_S)
        yield


def claim(client: Redis, folder: Path) -> None:
    """Hold the log for the next half minute; a killed drain into the same folder is no obstacle. Raises Busy."""
    mine = claim_of(folder)
    try:
        holder: Any = client.eval(CLAIM, 1, DRAINER, mine, DRAINER_MS)
    except redis.ResponseError as err:
        if not (isinstance(err, redis.exceptions.OutOfMemoryError) or "OOM" in str(err)):
            raise
        # A Redis that is full of records takes no claim, and must be drained more than ever.
        holder = value(client, DRAINER) or mine
    if holder != mine:
        raise Busy(
            f"the log is being drained to {holder.decode(errors='replace')} (host:folder), as a running stack does by "
            f"itself; drain to that folder, or stop that drain, or wait {DRAINER_MS // 1000} s if it has died"
        )


def release(client: Redis, folder: Path) -> None:
    """Without Redis the claim expires by itself."""
    try:
        client.eval(RELEASE, 1, DRAINER, claim_of(folder))
    except redis.RedisError:
        return


def claim_of(folder: Path) -> bytes:
    return f"{socket.gethostname()}:{folder.resolve()}".encode()
