"""Runs a job: plans it, or finds where an earlier run of it stopped, has the rest computed, and writes the manifest."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from marctl.batch.actor import Setup
from marctl.batch.answers import key_fields, schema_of
from marctl.batch.archive import Description, describe
from marctl.batch.cluster import cluster, outcomes
from marctl.batch.folder import folder_of
from marctl.batch.formats.scan import digest_at
from marctl.batch.job import Job, refuse_change
from marctl.batch.output import Output, Planned, Report, digest_of, encoded, part_name
from marctl.batch.places import find_files, place_of
from marctl.batch.plan import Unit, plan, unit_rows_for
from marctl.batch.progress import Progress
from marctl.batch.questions import columns_for
from marctl.batch.room import room_for
from marctl.batch.roots import refuse_files_outside, refuse_outside
from marctl.batch.sources import DELIMITED, PARQUET, Scanned, scan
from marctl.batch.where import Condition
from marctl.batch.workspace import workspace
from marctl.build.extract import extract
from marctl.build.reader import Archive, read_archive
from marctl.core.errors import UserError
from marctl.signing.trust import Trust

Notify = Callable[[str], None]
SETTINGS = ("mapping", "keys", "where", "sample", "limit", "explain", "log", "features", "as_of", "unit_rows")
"""Of a job, as the manifest tells them."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the text says how to go on."""


class TooManyErrors(UserError):
    """More bad rows than the user allows."""


class NotEmpty(UserError):
    """The output folder holds something that is no job's."""


@dataclass(frozen=True)
class Request:
    """What the user asked for. The first group decides what comes out, the second how it is computed."""

    archive: Path
    inputs: Sequence[str]
    output: str
    mapping: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None
    sample: float | None = None
    limit: int | None = None
    unit_rows: int | None = None
    features: Mapping[str, str] = field(default_factory=dict)
    as_of: str | None = None
    explain: Mapping[str, Any] | None = None
    log: bool = False

    actors: int | None = None
    gpus: float = 0
    address: str | None = None
    max_errors: int | None = None
    restart: bool = False
    redis: str | None = None
    """URL of the prediction log's Redis."""
    progress_file: Path | None = None
    read_below: Sequence[str] = ()
    """Folders that every input file must be in, wherever links lead; empty for no such limit."""
    write_below: Sequence[str] = ()
    trust: Trust | None = None
    """Whose archives may be loaded; None for anybody's."""


def run(request: Request, notify: Notify) -> dict[str, Any]:
    """The manifest. Raises UserError, and Interrupted."""
    archive = read_archive(request.archive)
    if request.trust is not None:
        request.trust.check(archive.path, archive.statement)
    if request.write_below:
        refuse_outside(request.output, request.write_below)
    output = Output(folder_of(request.output))
    with workspace() as folder:
        root = folder / "archive"
        extract(archive, root)
        description = describe(root, f"{archive.name} {archive.version}")
        refuse_foreign(output, restart=request.restart)
        with output.folder.claimed():
            planned, schema = prepare(request, archive, description, output, notify)
            return Attempt(request, planned, description, schema, output, notify).go(folder, root)


def prepare(
    request: Request, archive: Archive, description: Description, output: Output, notify: Notify
) -> tuple[Planned, pa.Schema]:
    """The job, as it was planned before if it was, and the keys' schema. Raises JobChanged."""
    if request.explain is not None and not description.explains:
        raise UserError(
            f"{archive.name} {archive.version} explains nothing; add `explanations: {{workers: 1}}` to its recipe"
        )
    condition = Condition(request.where) if request.where else None
    for entity, text in request.features.items():
        description.stored(entity)
        if request.read_below:
            refuse_outside(text, request.read_below)
    files = find_files(request.inputs)
    if request.read_below:
        refuse_files_outside(files, request.read_below)
    scanned = [scan(place) for place in files]
    refuse_absent(request, scanned, condition, description)
    keys = keys_of(request, scanned)
    before = None if request.restart else output.planned()
    job = job_of(request, archive, scanned, before)
    schema_of(job, description.columns, list(keys))
    if before is not None:
        refuse_change(output.folder.place.shown, before.job, job)
        return before, keys
    if request.restart:
        output.clear()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    planned = Planned(job, tuple(plan(job, scanned)), now)
    output.begin(planned)
    rows = sum(one.source.rows for one in scanned)
    notify(f"{rows:,} rows in {len(scanned)} file{'s' * (len(scanned) > 1)}, {len(planned.units)} units")
    return planned, keys


def job_of(request: Request, archive: Archive, scanned: Sequence[Scanned], before: Planned | None) -> Job:
    """The size of a unit is the earlier run's, unless the user names one."""
    rows = sum(one.source.rows for one in scanned)
    default = unit_rows_for(rows) if before is None else before.job.unit_rows
    return Job(
        model=archive.name,
        version=archive.version,
        digest=archive.sha256,
        sources=tuple(one.source for one in scanned),
        mapping=dict(request.mapping),
        keys=dict(request.keys),
        where=request.where,
        sample=request.sample,
        limit=request.limit,
        explain=None if request.explain is None else dict(request.explain),
        log=request.log,
        features=dict(request.features),
        as_of=request.as_of,
        histories={entity: digest_at(text) for entity, text in request.features.items()},
        unit_rows=request.unit_rows or default,
    )


def refuse_foreign(output: Output, *, restart: bool) -> None:
    """Raise NotEmpty for a folder that is somebody else's; --restart removes a job's files and no others."""
    if output.planned() is None and not output.folder.is_empty and output.folder.get("_job/lock") is None:
        where = output.folder.place.shown
        raise NotEmpty(f"{where} is not empty, and no batch job wrote it; name another output folder")


def refuse_absent(
    request: Request, scanned: Sequence[Scanned], condition: Condition | None, description: Description
) -> None:
    """Raise UserError for columns that the job names and a file lacks."""
    named = {f"--key {key}": column for key, column in request.keys.items()}
    named |= {f"--features {entity}=...": entity for entity in request.features}
    named |= {"--as-of": request.as_of} if request.as_of else {}
    named |= {f"--where {request.where!r}": column for column in sorted(condition.columns if condition else ())}
    for one in scanned:
        there = one.source.columns
        if not one.source.rows:
            continue
        columns_for(description.fields, request.mapping, there, one.source.name)
        for option, column in named.items():
            if column not in there:
                raise UserError(f"{option}: {one.source.name} has no column {column!r}; there are: {', '.join(there)}")


def keys_of(request: Request, scanned: Sequence[Scanned]) -> pa.Schema:
    schemas, types = [], []
    for one in scanned:
        source = one.source
        place = place_of(source.place)
        schemas.append(pq.read_schema(place.path, filesystem=place.filesystem) if source.format in PARQUET else None)
        types.append(dict.fromkeys(source.columns, "string") if source.format in DELIMITED else source.columns)
    return pa.schema(key_fields(request.keys, types, schemas))


class Attempt:
    """One run over what is not done yet."""

    def __init__(
        self,
        request: Request,
        planned: Planned,
        description: Description,
        keys: pa.Schema,
        output: Output,
        notify: Notify,
    ) -> None:
        self._request, self._planned, self._description = request, planned, description
        self._keys, self._output, self._notify = keys, output, notify
        self._job = digest_of(planned.job)
        self._done = output.done(self._job)

    def go(self, folder: Path, root: Path) -> dict[str, Any]:
        """Compute what is left, and write the manifest."""
        waiting = [unit for unit in self._planned.units if unit.number not in self._done]
        if not waiting and (manifest := self._output.manifest()) is not None:
            self._notify("this job is done; nothing is left to compute")
            return manifest
        if self._done:
            rows = sum(report.selected for report in self._done.values())
            self._notify(f"going on: {len(self._done)} of {len(self._planned.units)} units ({rows:,} rows) are done")
        if waiting:
            self._compute(waiting, folder, root)
        if not self._planned.units:
            self._put_empty()
        return self._finish()

    def _compute(self, waiting: list[Unit], folder: Path, root: Path) -> None:
        token = secrets.token_hex(8)
        self._output.take_over(token)
        request, threads = self._request, self._description.threads
        setup = Setup(
            self._planned.job,
            self._description,
            self._keys.serialize().to_pybytes(),
            self._output.folder.place.text,
            token,
            str(root),
            "cuda" if request.gpus else "cpu",
            request.redis,
        )
        cpus = len(os.sched_getaffinity(0))
        try:
            with (
                cluster(request.address, folder, cpus) as ray,
                Progress(self._planned, self._done, request.progress_file) as progress,
            ):
                room = room_for(ray.cluster_resources(), threads, request.gpus, request.actors)
                found = outcomes(ray, setup, waiting, request.archive if request.address else None, room)
                with closing(found):
                    for outcome in found:
                        self._take(outcome.report, outcome.failure, progress)
        except KeyboardInterrupt as err:
            raise Interrupted(self._stopped()) from err

    def _take(self, report: Report | None, failure: str | None, progress: Progress) -> None:
        if report is None:
            raise UserError(f"{failure}. {self._stopped()}")
        self._done[report.unit] = report
        progress.advance(report)
        failed, most = sum(one.failed for one in self._done.values()), self._request.max_errors
        if most is not None and failed > most:
            raise TooManyErrors(
                f"{failed:,} rows failed, and --max-errors allows {most:,}; their reasons are in "
                f"{(self._output.folder.place / '_job/errors').shown}. {self._stopped()}"
            )

    def _stopped(self) -> str:
        rows = sum(report.selected for report in self._done.values())
        return (
            f"{len(self._done)} of {len(self._planned.units)} units ({rows:,} rows) are done and kept; "
            "the same command goes on from there"
        )

    def _put_empty(self) -> None:
        """A job without rows has a file of predictions, too, so that whoever reads it finds the columns."""
        schema = schema_of(self._planned.job, self._description.columns, list(self._keys))
        report = Report(0, self._job, 0, 0, 0, 0.0, 0.0)
        self._output.folder.put(part_name(0), encoded(schema.empty_table(), report))

    def _finish(self) -> dict[str, Any]:
        job, reports = self._planned.job, list(self._done.values())
        settings = {name: getattr(job, name) for name in SETTINGS}
        manifest = {
            "model": job.model,
            "version": job.version,
            "digest": job.digest,
            "inputs": [
                {"file": source.name, "sha256": source.sha256, "bytes": source.bytes, "rows": source.rows}
                for source in job.sources
            ],
            "rows": {
                "read": sum(source.rows for source in job.sources),
                "selected": sum(report.selected for report in reports),
                "predicted": sum(report.predicted for report in reports),
                "failed": sum(report.failed for report in reports),
            },
            "settings": settings,
            "started_at": self._planned.started_at,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "compute_seconds": round(sum(report.seconds for report in reports), 3),
            "cpu_seconds": round(sum(report.cpu_seconds for report in reports), 3),
            "outputs": self._output.files(),
        }
        self._output.finish(manifest)
        return msgspec.to_builtins(manifest)  # type: ignore[no-any-return]
