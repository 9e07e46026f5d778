"""The service's jobs on disk: one file each, so that they outlive the service."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from marctl.batch.progress import Figures
from marctl.core.batch_jobs import BatchPredict, Status
from marctl.core.files import write_atomically
from marctl.core.process import Identity

OVER: tuple[Status, ...] = ("done", "failed", "cancelled")
UNDER_WAY: tuple[Status, ...] = ("running", "cancelling")
MOST_KEPT = 1000
"""Jobs that are over, at most; the oldest are forgotten. Their output stays."""
PRIVATE = 0o600


class Record(Struct, frozen=True, kw_only=True):
    """A job of the service."""

    id: str
    asked: BatchPredict
    client: str
    status: Status
    submitted_at: str
    started_at: str | None = None
    finished_at: str | None = None
    process: Identity | None = None
    attempts: int = 0
    rows: dict[str, int] | None = None
    """Of a finished job: read, selected, predicted, failed."""
    error: dict[str, str] | None = None

    @property
    def over(self) -> bool:
        return self.status in OVER


class Records:
    """All jobs of one state folder; `get` and `all` read no disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known: dict[str, Record] = {}
        for path in folder.glob("*.json"):
            with suppress(msgspec.DecodeError, OSError):
                record = msgspec.json.decode(path.read_bytes(), type=Record)
                self._known[record.id] = record

    def get(self, job: str) -> Record | None:
        return self._known.get(job)

    def all(self) -> list[Record]:
        """The newest first."""
        return sorted(self._known.values(), key=lambda record: (record.submitted_at, record.id), reverse=True)

    def keep(self, record: Record) -> Record:
        """Raises WriteFailed; then the former one is still in force."""
        write_atomically(self._path(record.id), msgspec.json.encode(record), mode=PRIVATE)
        self._known[record.id] = record
        return record

    def change(self, record: Record, **changes: Any) -> Record:
        return self.keep(msgspec.structs.replace(record, **changes))

    def forget_old(self) -> None:
        for record in [each for each in self.all() if each.over][MOST_KEPT:]:
            for path in (self._path(record.id), self.log(record.id), self.result(record.id), self.progress(record.id)):
                path.unlink(missing_ok=True)
            del self._known[record.id]

    def figures(self, job: str) -> Figures | None:
        """How far a job is, as its process tells; None before it began to compute."""
        try:
            return msgspec.json.decode(self.progress(job).read_bytes(), type=Figures)
        except (OSError, msgspec.DecodeError):
            return None

    def progress(self, job: str) -> Path:
        return self.folder / f"{job}.progress"

    def log(self, job: str) -> Path:
        return self.folder / f"{job}.log"

    def result(self, job: str) -> Path:
        """What the command printed."""
        return self.folder / f"{job}.result"

    def _path(self, job: str) -> Path:
        return self.folder / f"{job}.json"
