"""Child processes: started, awaited, known again by identity, and stopped with all that they started.

A pid alone may be reused, and a clock time moves when the clock is set. A process is known by its pid, its start in
the kernel's ticks since boot, and the boot itself. Whatever starts one may be killed before it has written that down,
so each kind of process is also found by its own command line.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.logs import Position

GRACE_S = 20.0
ORPHANS_S = 3.0
"""For what a process started and left: long enough to see that it is gone, and to write down what is left."""
POLL_S = 0.02
LOG_BYTES = 10 << 20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
START_TICKS = 19
"""Where /proc/PID/stat has it, counted after the command's closing bracket (proc(5), field 22)."""


class StartFailed(UserError):
    """A process did not come up; the text has its last words."""


class Identity(Struct, frozen=True):
    """One process, for as long as the machine runs and after. `started`: clock ticks after boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """None for a process that has ended, zombies included."""
        started = start_ticks(pid)
        return None if started is None else cls(pid, started, boot_id())

    @property
    def alive(self) -> bool:
        return self.of(self.pid) == self

    @property
    def process(self) -> psutil.Process | None:
        """None if it has ended."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid) if self.alive else None
        return None


def start_ticks(pid: int) -> int | None:
    """When a process started, None if it has ended. Where there is no /proc, hundredths of a second by the clock."""
    if not BOOT_ID.exists():
        return clock_ticks(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[START_TICKS])


def clock_ticks(pid: int) -> int | None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return round(process.create_time() * 100) if is_alive(process) else None
    return None


def boot_id() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


@dataclass(frozen=True)
class Program:
    """How one process is started. It gets a session of its own, so that a terminal's Ctrl-C reaches marctl alone."""

    name: str
    command: Sequence[str]
    folder: Path
    environ: Mapping[str, str]
    log: Path
    """What it prints; goes on from the last start."""
    told: Path | None = None
    """A log of its own that says more, where it has one."""

    def start(self, ready: Callable[[int], bool], timeout_s: float, advice: str = "") -> Identity:
        """Start it and wait till `ready` says so of its pid. Raises StartFailed; nothing is left running then."""
        logs = [Position.now(path) for path in (self.told, self.log) if path]
        process = self._popen()
        try:
            deadline = time.monotonic() + timeout_s
            while not ready(process.pid):
                if process.poll() is not None:
                    self._fail(f"ended while starting, exit code {process.returncode}", logs, advice)
                if time.monotonic() > deadline:
                    self._fail(f"did not answer within {timeout_s:.0f} s", logs, advice)
                time.sleep(POLL_S)
            found = Identity.of(process.pid)
            if found is None:
                self._fail("ended as soon as it was ready", logs, advice)
            return found
        except BaseException:
            end(process)
            raise

    def _popen(self) -> subprocess.Popen[bytes]:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            rotate(self.log)
            with self.log.open("ab") as output:
                return subprocess.Popen(
                    list(self.command),
                    cwd=self.folder,
                    env=dict(self.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as err:
            raise StartFailed(f"{self.name} cannot be started: {err}") from err

    def _fail(self, what: str, logs: Sequence[Position], advice: str) -> NoReturn:
        words = next((words for log in logs if (words := log.last_words())), "")
        raise StartFailed(f"{self.name} {what}{words}{advice}")


def rotate(log: Path) -> None:
    """Begin a log anew once it is large; the former one is kept."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.replace(log, log.with_name(log.name + ".1"))


def find_processes(belongs: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Every process that this is true of; one that goes meanwhile is left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if is_alive(process) and belongs(process):
                found.append(process)
    return found


def reap(pid: int) -> None:
    """Take the exit code of a child that has ended, so that it is no zombie; nothing for another's child."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end(process: subprocess.Popen[bytes]) -> None:
    """A child that was started just now, and what it started."""
    with suppress(psutil.NoSuchProcess):
        stop_tree(psutil.Process(process.pid))
    process.wait()


def processes_marked(mark: str) -> list[psutil.Process]:
    """Every process with `mark` in its command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(mark in word for word in p.info["cmdline"] or [])]


def never() -> bool:
    return False


def stop_tree(process: psutil.Process, grace_s: float = GRACE_S, has_finished: Callable[[], bool] = never) -> None:
    """Ask the process to end, and after the grace period end it and its descendants.

    An interrupt ends the grace, and so does `has_finished`, for a process that takes its time once its work is done;
    its descendants have a moment then to end by themselves.
    """
    tree = [process, *descendants(process)]
    try:
        process.terminate()
        wait_gone(tree, grace_s, has_finished)
        if has_finished():
            process.kill()
            wait_gone(tree, ORPHANS_S)
    except psutil.NoSuchProcess:
        pass
    finally:
        kill(tree)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """End them now, and wait till they are gone."""
    for process in processes:
        if is_alive(process):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    wait_gone(processes, GRACE_S)


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float, has_finished: Callable[[], bool] = never) -> None:
    """Return when none is alive, when they have finished, or after the timeout."""
    deadline = time.monotonic() + timeout_s
    while any(is_alive(p) for p in processes) and not has_finished() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: where no init process collects orphans, it would stay for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
