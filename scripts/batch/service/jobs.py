"""Runs the service's jobs, a few at once, each as a process that outlives the service if that is killed."""

from __future__ import annotations

import os
import secrets
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil

from marctl.batch.service.command import command_of
from marctl.batch.service.figures import Ended
from marctl.batch.service.records import OVER, UNDER_WAY, Record, Records
from marctl.batch.service.settings import ServiceSettings
from marctl.core.batch_jobs import BatchPredict, JobFigures
from marctl.core.errors import UserError
from marctl.core.process import Identity, kill, reap

POLL_S = 0.3
MOST_ATTEMPTS = 5
"""Of a job whose process was killed by somebody else; each goes on where the one before stopped."""
GRACE_S = 30.0
FAILED = {"error": "failed", "detail": "the job's process ended without a word"}


class TooManyJobs(UserError):
    """As many wait as may."""


class OutputTaken(UserError):
    """A job that is not over writes to the same folder."""


class NoSuchJob(UserError):
    """No job of this id, or none of this client's."""


class Jobs:
    """Takes jobs, and starts them in the order in which they came."""

    def __init__(self, folder: Path, state: Path, store: Path, settings: ServiceSettings) -> None:
        """`folder`: of the records; `state`: of the stack; `store`: of the archives."""
        self.records = Records(folder)
        self._state, self._store, self._settings = state, store, settings
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        """Those that this process started; others were started by one before it."""
        self._ended = Ended()

    # --- for clients

    def submit(self, asked: BatchPredict, client: str) -> Record:
        """Raises TooManyJobs, OutputTaken, and UserError."""
        with self._lock:
            open_jobs = [record for record in self.records.all() if not record.over]
            if sum(record.status == "queued" for record in open_jobs) >= self._settings.most_waiting:
                raise TooManyJobs(f"{self._settings.most_waiting} jobs wait already; send this one later")
            if any(same_folder(record.asked.output, asked.output) for record in open_jobs):
                raise OutputTaken(f"a job that is not over writes to {asked.output}; wait for it, or cancel it")
            job = f"batch-{secrets.token_hex(8)}"
            return self.records.keep(Record(id=job, asked=asked, client=client, status="queued", submitted_at=now()))

    def find(self, job: str, client: str) -> Record:
        """Raises NoSuchJob."""
        record = self.records.get(job)
        if record is None or record.client != client:
            raise NoSuchJob(f"no job {job[:60]!r}; GET /v1/batch lists those that there are")
        return record

    def cancel(self, job: str, client: str) -> Record:
        """End it soon; what it has done stays in its output folder. Nothing happens to one that is over."""
        with self._lock:
            record = self.find(job, client)
            if record.status == "queued":
                record = self.records.change(record, status="cancelled", finished_at=now())
                self._ended.add(record)
            elif record.status == "running":
                record = self.records.change(record, status="cancelling")
                self._end(record)
            return record

    def figures(self) -> JobFigures:
        return self._ended.figures(self.records)

    # --- the thread that runs them

    def start(self) -> None:
        threading.Thread(target=self._run, name="batch-jobs", daemon=True).start()

    def stop(self) -> None:
        """End the jobs that run, in order; the next service goes on with them."""
        self._stopped.set()
        with self._lock:
            running = [record for record in self.records.all() if record.status in UNDER_WAY]
            for record in running:
                self._end(record)
            self._wait(running)
            for record in running:
                status = "queued" if record.status == "running" else "cancelled"
                with suppress(UserError):
                    self._settle(record, status if not self._has_result(record) else None)

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            with self._lock, suppress(UserError):  # a full disk: tried again
                self._step()

    def _step(self) -> None:
        for record in self.records.all():
            if record.status in UNDER_WAY and not self._alive(record):
                self._settle(record)
        waiting = [record for record in reversed(self.records.all()) if record.status == "queued"]
        busy = sum(record.status in UNDER_WAY for record in self.records.all())
        for record in waiting[: max(0, self._settings.jobs_at_once - busy)]:
            self._begin(record)
        self.records.forget_old()

    def _begin(self, record: Record) -> None:
        self.records.result(record.id).unlink(missing_ok=True)
        record = self.records.change(
            record, status="running", attempts=record.attempts + 1, started_at=record.started_at or now(), process=None
        )
        with self.records.log(record.id).open("ab") as log, self.records.result(record.id).open("wb") as result:
            child = subprocess.Popen(
                command_of(record, self._settings, self.records.progress(record.id), self._state, self._store),
                cwd=self.records.folder,
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                start_new_session=True,
            )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, self._settings.nice)
        self._children[record.id] = child
        self.records.change(record, process=Identity.of(child.pid))

    def _alive(self, record: Record) -> bool:
        child = self._children.get(record.id)
        if child is not None:
            return child.poll() is None
        found = record.process or self._found(record)
        if found is not None and found.alive:
            return True
        if found is not None:
            reap(found.pid)
        return False

    def _found(self, record: Record) -> Identity | None:
        """A job's process that was started when the service was killed before it had written that down."""
        mark = f"--progress={self.records.progress(record.id)}"
        for process in psutil.process_iter(["cmdline"]):
            if mark in (process.info["cmdline"] or []):
                return Identity.of(process.pid)
        return None

    def _settle(self, record: Record, status: str | None = None) -> None:
        """Write down how a job ended; one whose process was killed waits for its next attempt."""
        self._children.pop(record.id, None)
        told = self._told(record)
        if status is None and told is None:
            again = record.status == "running" and record.attempts < MOST_ATTEMPTS
            status = "queued" if again else "failed" if record.status == "running" else "cancelled"
        elif status is None and told is not None:
            status = "done" if "error" not in told else "failed"
        changes: dict[str, object] = {"status": status, "process": None}
        if status == "done" and told is not None:
            changes["rows"] = told["rows"]
        if status == "failed":
            changes["error"] = told or FAILED
        if status in OVER:
            changes["finished_at"] = now()
        record = self.records.change(record, **changes)
        if record.over:
            self._ended.add(record)

    def _has_result(self, record: Record) -> bool:
        return self._told(record) is not None

    def _told(self, record: Record) -> dict[str, object] | None:
        """The command's result or error; None if it did not get to tell one."""
        try:
            found: dict[str, object] = msgspec.json.decode(self.records.result(record.id).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        return found

    def _end(self, record: Record) -> None:
        """Ask its process to end."""
        process = self._process(record)
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def _process(self, record: Record) -> psutil.Process | None:
        found = record.process or self._found(record)
        return None if found is None else found.process

    def _wait(self, records: Sequence[Record]) -> None:
        processes = [process for record in records if (process := self._process(record)) is not None]
        _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
        kill(alive)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def same_folder(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")
