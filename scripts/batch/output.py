"""What a job leaves behind: predictions unit by unit, errors, and at the end a manifest.

    predictions/part-00000.parquet   one per unit; it is there once the unit is done
    errors.jsonl                     {"file", "row", "reason"} of each bad row, at the end
    manifest.json                    counts, digests, settings; there once the job is done
    _job/                            the job and its units, errors until they are joined, the lock

A unit's errors are written before its predictions, and both are the same whenever they are computed, the time of
prediction aside: whatever a kill leaves, the unit is computed again or it is whole.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from marctl.batch.folder import Folder
from marctl.batch.formats.block import BadRow
from marctl.batch.job import Job
from marctl.batch.plan import Unit

JOB, ATTEMPT, MANIFEST, ERRORS = "_job/job.json", "_job/attempt", "manifest.json", "errors.jsonl"
PARTS, UNIT_ERRORS, TRIES = "predictions", "_job/errors", "_job/tries"
UNIT_KEY = b"marctl.unit"


class Planned(Struct, frozen=True):
    """A job and what it was cut into."""

    job: Job
    units: tuple[Unit, ...]
    started_at: str


class Report(Struct, frozen=True):
    """What became of a unit."""

    unit: int
    job: str
    """Digest of the job that it belongs to."""
    selected: int
    predicted: int
    failed: int
    seconds: float
    """In the actor, from reading to the last answer."""
    cpu_seconds: float


class Output:
    """One job's folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    # --- the job

    def planned(self) -> Planned | None:
        content = self.folder.get(JOB)
        return None if content is None else msgspec.json.decode(content, type=Planned)

    def begin(self, planned: Planned) -> None:
        self.folder.put(JOB, msgspec.json.encode(planned))

    def clear(self) -> None:
        """Forget an earlier job; what says that units are done goes first."""
        for name in (MANIFEST, ERRORS):
            self.folder.remove(name)
        for name in (PARTS, UNIT_ERRORS, TRIES):
            self.folder.remove_folder(name)
        self.folder.remove(JOB)

    # --- units

    def commit(self, report: Report, table: pa.Table, bad: Sequence[BadRow], file: str) -> None:
        """Raises WriteFailed; then the unit is not done."""
        if bad:
            lines = [msgspec.json.encode({"file": file, "row": row.row, "reason": row.reason}) for row in bad]
            self.folder.put(f"{UNIT_ERRORS}/{report.unit:05d}.jsonl", b"\n".join(lines) + b"\n")
        self.folder.put(part_name(report.unit), encoded(table, report))

    def done(self, job: str) -> dict[int, Report]:
        """The reports of a job's committed units. A file that is damaged, or another job's, does not count."""
        found = [self._report(name) for name in self.folder.names(PARTS)]
        return {report.unit: report for report in found if report is not None and report.job == job}

    def _report(self, name: str) -> Report | None:
        place = self.folder.place / PARTS / name
        try:
            metadata = pq.read_schema(place.path, filesystem=place.filesystem).metadata or {}
            return msgspec.json.decode(metadata[UNIT_KEY], type=Report)
        except (pa.ArrowInvalid, OSError, KeyError, msgspec.DecodeError):
            return None

    # --- which attempt is at work

    def take_over(self, token: str) -> None:
        """From here on no actor of an earlier attempt commits anything."""
        self.folder.put(ATTEMPT, token.encode())
        self.folder.remove_folder(TRIES)

    def is_attempt(self, token: str) -> bool:
        return self.folder.get(ATTEMPT) == token.encode()

    def tried(self, unit: int) -> int:
        """How often a unit was begun in this attempt, this time included."""
        name = f"{TRIES}/{unit:05d}"
        count = int(self.folder.get(name) or b"0") + 1
        self.folder.put(name, str(count).encode())
        return count

    # --- the end

    def finish(self, manifest: dict[str, Any]) -> None:
        """Join the errors, then write the manifest."""
        self.folder.join(ERRORS, self._errors())
        self.folder.put(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        self.folder.remove_folder(TRIES)

    def _errors(self) -> Iterator[bytes]:
        for name in self.folder.names(UNIT_ERRORS):
            yield self.folder.get(f"{UNIT_ERRORS}/{name}") or b""

    def files(self) -> list[dict[str, Any]]:
        """Each file of predictions, with its digest."""
        return [
            {"file": f"{PARTS}/{name}", "sha256": hashlib.sha256(self.folder.get(f"{PARTS}/{name}") or b"").hexdigest()}
            for name in self.folder.names(PARTS)
        ]

    def manifest(self) -> dict[str, Any] | None:
        content = self.folder.get(MANIFEST)
        return None if content is None else msgspec.json.decode(content, type=dict[str, Any])


def part_name(unit: int) -> str:
    return f"{PARTS}/part-{unit:05d}.parquet"


def encoded(table: pa.Table, report: Report) -> bytes:
    """The Parquet file, with the unit's report in its footer."""
    target = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({UNIT_KEY: msgspec.json.encode(report)}), target, compression="zstd")
    return target.getvalue()


def digest_of(job: Job) -> str:
    return hashlib.sha256(msgspec.json.encode(job)).hexdigest()
