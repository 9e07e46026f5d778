"""What runs in a Ray actor: the archive, loaded once, and unit after unit."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from marctl.batch.answers import schema_of
from marctl.batch.archive import Description, extract
from marctl.batch.ask import Ask
from marctl.batch.folder import folder_of
from marctl.batch.job import Job
from marctl.batch.output import Output, Report, digest_of
from marctl.batch.plan import Unit
from marctl.batch.unit import UnitRunner
from marctl.batch.workspace import workspace
from marctl.core.errors import UserError

MOST_TRIES = 4
"""Of a unit in one attempt, before its rows are taken for what ends the process."""


class Setup(Struct, frozen=True):
    """What every actor of an attempt is told."""

    job: Job
    description: Description
    keys: bytes
    """Schema of the key columns, in Arrow's own format."""
    output: str
    attempt: str
    root: str
    """The extracted archive, on the machine that began the job."""
    device: str = "cpu"
    redis: str | None = None
    """URL of the prediction log's Redis, for a job that records."""


class Outcome(Struct, frozen=True):
    """A unit's report, or why the job cannot go on."""

    report: Report | None = None
    failure: str | None = None


class Actor:
    """Called by Ray Data with one row per unit."""

    def __init__(self, setup: bytes, archive: list[Any]) -> None:
        """`archive`: a reference to the archive file's bytes; empty where every machine has it extracted."""
        logging.getLogger("marctl_handlers").setLevel(logging.ERROR)
        self._setup = msgspec.json.decode(setup, type=Setup)
        self._output = Output(folder_of(self._setup.output))
        self._failure: str | None = None
        try:
            self._runner = self._loaded(archive)
            gc.freeze()  # Ray has each actor collect garbage now and then, the libraries' objects included
        except UserError as err:
            self._failure = str(err)
        except Exception as err:
            logging.getLogger(__name__).exception("loading")
            title = f"{self._setup.job.model} {self._setup.job.version}"
            cure = "if its archive is older than this command, build it again"
            self._failure = f"{title} cannot be used here: {type(err).__name__}: {err}; {cure}"

    def _loaded(self, archive: list[Any]) -> UnitRunner:
        job, described = self._setup.job, self._setup.description
        root = Path(self._setup.root)
        if not root.is_dir():
            root = self._fetched(archive)
        schema = schema_of(job, described.columns, list(pa.ipc.read_schema(pa.py_buffer(self._setup.keys))))
        ask = Ask.loaded(root, job, self._setup.device, self._setup.redis)
        return UnitRunner(job, digest_of(job), described, self._output, schema, ask)

    def _fetched(self, archive: list[Any]) -> Path:
        """The archive, extracted on this machine."""
        import ray

        if not archive:
            raise UserError(f"{self._setup.root} is not there any more")
        content = ray.get(archive[0])
        if hashlib.sha256(content).hexdigest() != self._setup.job.digest:
            raise UserError("the archive that arrived is not the job's")
        self._workspace = workspace()
        folder = self._workspace.__enter__()
        packed = folder / "archive.mar"
        packed.write_bytes(content)
        extract(packed, folder / "archive")
        return folder / "archive"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = msgspec.json.decode(row["unit"], type=Unit)
        return {"outcome": msgspec.json.encode(self._outcome(unit)), "pid": os.getpid()}

    def _outcome(self, unit: Unit) -> Outcome:
        """Failures are told and not raised: Ray would begin the unit again, without end."""
        if self._failure is not None:
            return Outcome(failure=self._failure)
        try:
            if not self._output.is_attempt(self._setup.attempt):
                return Outcome(failure="another run of this job has taken over its output folder")
            if self._output.tried(unit.number) > MOST_TRIES:
                return Outcome(failure=self._deadly(unit))
            return Outcome(self._runner.run(unit))
        except UserError as err:
            return Outcome(failure=str(err))
        except Exception as err:
            logging.getLogger(__name__).exception("unit %d", unit.number)
            return Outcome(failure=f"unit {unit.number} failed: {type(err).__name__}: {err}")

    def _deadly(self, unit: Unit) -> str:
        name = self._setup.job.sources[unit.source].name
        return (
            f"{MOST_TRIES} times the process ended while it computed rows {unit.start} to {unit.stop - 1} of {name}; "
            "if one of them breaks the model, leave it out with --where"
        )
