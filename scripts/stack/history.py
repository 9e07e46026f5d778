"""Every revision of the declared state: appended, never changed, each line holding the sha256 of the one before it.

history.jsonl   a line per revision: who, when, by which command, why, and the whole document
head.json       the newest line once more: a lost or edited last line is found, and a torn one written back

The line is written first and head.json after it: a kill in between leaves a head that is one behind. A last line
without its end is passed over by readers and mended by the next change.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.files import WriteFailed, sync, write_all, write_atomically, write_failed
from marctl.stack.document import Document

BLOCK = 64 * 1024


class Conflict(UserError):
    """Somebody else changed the state first; the text says who."""


class HistoryDamaged(UserError):
    """The history does not end as it was written."""


class NoSuchRevision(UserError):
    """The history holds no such revision."""


class Revision(Struct, frozen=True):
    """One line. `reason` may be empty, `previous` is empty for the first one; `at` is UTC, ISO 8601."""

    revision: int
    at: str
    actor: str
    command: str
    reason: str
    previous: str
    document: Document

    def __str__(self) -> str:
        why = f", because {self.reason}" if self.reason else ""
        return f"revision {self.revision} by {self.actor} at {self.at} ({self.command}{why})"


@dataclass(frozen=True)
class Last:
    """The newest revision and its line. `size`: bytes of whole lines in the file; `missing`: only the head has it."""

    revision: Revision
    line: bytes
    size: int
    missing: bool = False

    @property
    def sha256(self) -> str:
        return digest(self.line) if self.line else ""


NOTHING = Revision(0, "", "", "", "", "", Document())
"""Before the first revision."""


class History:
    """The revisions of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "history.jsonl"
        self.head = folder / "head.json"
        self._lock = folder / "history.lock"

    def stamp(self) -> tuple[int, int]:
        """Changes with every revision; cheap enough to ask twenty times a second."""
        try:
            found = self.file.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def current(self) -> Revision:
        """The newest revision, NOTHING before the first one. Raises HistoryDamaged."""
        try:
            return self._last().revision
        except HistoryDamaged:
            with self._locked():  # two changes may have come between the reading of the two files
                return self._last().revision

    def commit(self, document: Document, *, expected: int, actor: str, command: str, reason: str = "") -> Revision:
        """Append a revision if `expected` is still the newest one.

        Raises Conflict if it is not, and WriteFailed if the disk is full; nothing has changed then.
        """
        with self._locked():
            last = self._mended()
            if last.revision.revision != expected:
                raise Conflict(f"the state was changed since revision {expected}: {last.revision}; look, and try again")
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            new = Revision(expected + 1, now, actor, command, reason, last.sha256, document)
            line = msgspec.json.encode(new)
            self._append(line, last.size)
            # The revision is durable by now; a head that is one behind is mended by the next change.
            with suppress(WriteFailed):
                self._write_head(line)
        return new

    def revisions(self) -> Iterator[Revision]:
        """All of them, oldest first; raises HistoryDamaged at a line that cannot be read."""
        for number, line in enumerate(self._whole_lines(), 1):
            yield decode(line, f"{self.file}, line {number}")

    def find(self, revision: int) -> Revision:
        """Raises NoSuchRevision."""
        for found in self.revisions():
            if found.revision == revision:
                return found
        raise NoSuchRevision(f"{self.file} holds no revision {revision}; `marctl history` lists those it holds")

    def at(self, when: datetime) -> Revision:
        """The revision that was declared at a moment, NOTHING before the first one."""
        found = NOTHING
        for revision in self.revisions():
            if datetime.fromisoformat(revision.at) <= when:
                found = revision
        return found

    def verify(self) -> list[str]:
        """Every sign that a line was changed, lost or put in; empty if there is none. A torn last line is mended."""
        with self._locked(), suppress(HistoryDamaged):
            self._mend_torn()
        lines = list(self._whole_lines())
        found: list[str] = []
        before = b""
        for number, line in enumerate(lines, 1):
            try:
                revision = decode(line, f"line {number}")
            except HistoryDamaged as err:
                found.append(str(err))
            else:
                if revision.revision != number:
                    found.append(f"line {number}: it is revision {revision.revision}")
                if revision.previous != (digest(before) if before else ""):
                    found.append(f"line {number}: the line before it is not the one that it followed")
            before = line
        return found + self._end_faults(before, len(lines))

    def _end_faults(self, last: bytes, count: int) -> list[str]:
        try:
            with self._locked():
                end = self._last()
        except HistoryDamaged as err:
            return [str(err)]
        if end.missing:
            return [f"the last line, revision {end.revision.revision}, is lost; {self.head.name} still holds it"]
        no_head = bool(last) and self._read_head() is None
        return [f"{self.head.name} is lost, so that nobody can tell whether {count} lines are all"] if no_head else []

    def _last(self) -> Last:
        """The newest revision, from the file's end and the head."""
        head, (line, size) = self._read_head(), self._last_line()
        if line is None and head is None:
            return Last(NOTHING, b"", 0)
        if line is None or head is None:
            only = decode(line or head or b"", f"{self.file}, last line")
            if line is None and only.revision != 1:
                raise self._damaged(f"is lost, {self.head.name} holds revision {only.revision}")
            return Last(only, line or head or b"", size, missing=line is None)
        written, acknowledged = decode(line, f"{self.file}, last line"), decode(head, str(self.head))
        if line == head or written.previous == digest(head):
            return Last(written, line, size)
        if acknowledged.previous == digest(line):
            return Last(acknowledged, head, size, missing=True)
        raise self._damaged(
            f"ends with revision {written.revision} and not as it was written, {self.head.name} holds revision "
            f"{acknowledged.revision}"
        )

    def _damaged(self, what: str) -> HistoryDamaged:
        return HistoryDamaged(f"{self.file} {what}; see `marctl history verify`, and restore both files from a copy")

    def _mended(self) -> Last:
        """The newest revision, with its line at the end of the file and in the head."""
        last = self._last()
        if last.missing:
            self._append(last.line, last.size)
            last = self._last()
        if last.line and last.line != self._read_head():
            self._write_head(last.line)
        return last

    def _mend_torn(self) -> None:
        """What was acknowledged and is torn comes back, what never was goes."""
        last = self._last()
        size = self.file.stat().st_size if self.file.exists() else 0
        if size == last.size:
            return
        if last.missing:
            self._append(last.line, last.size)
        else:
            os.truncate(self.file, last.size)

    def _last_line(self) -> tuple[bytes | None, int]:
        """The last whole line, read from the end, and where it ends."""
        try:
            with self.file.open("rb") as file:
                left = file.seek(0, os.SEEK_END)
                tail = b""
                while left and tail.count(b"\n") < 2:
                    step = min(BLOCK, left)
                    left = file.seek(left - step)
                    tail = file.read(step) + tail
        except FileNotFoundError:
            return None, 0
        whole, newline, _ = tail.rpartition(b"\n")
        return (whole.rpartition(b"\n")[2], left + len(whole) + 1) if newline else (None, 0)

    def _whole_lines(self) -> Iterator[bytes]:
        try:
            with self.file.open("rb") as file:
                yield from (line[:-1] for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return

    def _append(self, line: bytes, size: int) -> None:
        """After `size` bytes; what a killed change left behind them goes."""
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, size)
            os.lseek(handle, size, os.SEEK_SET)
            write_all(handle, line + b"\n")
            os.fsync(handle)
            sync(self.file.parent)
        except OSError as err:
            os.ftruncate(handle, size)
            raise write_failed(self.file, err) from err
        finally:
            os.close(handle)

    def _write_head(self, line: bytes) -> None:
        write_atomically(self.head, line + b"\n", mode=0o600)

    def _read_head(self) -> bytes | None:
        try:
            return self.head.read_bytes().rstrip(b"\n") or None
        except FileNotFoundError:
            return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held for the few milliseconds of a change; whoever comes meanwhile waits."""
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a")
        except OSError as err:
            raise write_failed(self._lock, err) from err
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def digest(line: bytes) -> str:
    return sha256(line).hexdigest()


def decode(line: bytes, place: str) -> Revision:
    try:
        return msgspec.json.decode(line, type=Revision)
    except msgspec.DecodeError as err:
        raise HistoryDamaged(f"{place}: not a revision as it was written ({err})") from err
