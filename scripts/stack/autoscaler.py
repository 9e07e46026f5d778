"""The stack's autoscaler (scripts/capacity/): a process beside it, and what that tells of itself.

autoscaler.json   its last report, written after each look
autoscaler.lock   held, and named in it, by the process that scales
"""

from __future__ import annotations

import os
import sys

import psutil
from msgspec import Struct

from marctl.core.process import Identity, Program, find_processes, stop_tree
from marctl.core.sole import holder
from marctl.stack.state import DamagedState, State, read

MODULE = "marctl.capacity.run"
START_TIMEOUT_S = 30.0
FIRST_START_S = 10.0
"""Taken for the start of a worker until one was measured."""


class Scaled(Struct, frozen=True, omit_defaults=True):
    """One version, as it was seen last. `kind`: why it has so many workers, as capacity/decide.py names it."""

    model: str
    version: str
    wanted: int
    ready: int
    kind: str
    reason: str
    demand: float = 0.0
    """Workers that the load alone would take."""
    start_s: float | None = None
    """What the last start of further workers took; None before the first one."""
    ups: int = 0
    downs: int = 0
    """How often workers were added and taken away."""
    removed: int = 0
    """Workers that were taken away."""


class AutoscalerReport(Struct, frozen=True, omit_defaults=True):
    """autoscaler.json. `time`: of the last look, in seconds since 1970."""

    time: float = 0.0
    versions: list[Scaled] = []

    def of(self, model: str, version: str) -> Scaled | None:
        return next((each for each in self.versions if (each.model, each.version) == (model, version)), None)


def last_report(state: State) -> AutoscalerReport:
    """An empty one for a file that is missing or damaged."""
    try:
        return read(state.autoscaler_report, AutoscalerReport) or AutoscalerReport()
    except DamagedState:
        return AutoscalerReport()


class AutoscalerProcess(Struct, frozen=True):
    """`config`: path of its settings, empty for the defaults."""

    config: str

    def start(self, state: State) -> Identity:
        """Raises StartFailed."""
        program = Program(
            name="the autoscaler",
            command=[sys.executable, "-m", MODULE, str(state.folder), self.config],
            folder=state.folder,
            environ=os.environ,
            log=state.logs / "autoscaler.log",
        )
        return program.start(lambda pid: is_held_by(state, pid), START_TIMEOUT_S)


def is_held_by(state: State, pid: int) -> bool:
    found = holder(state.autoscaler_lock)
    return found is not None and found.pid == pid


def find(state: State) -> list[psutil.Process]:
    """The one that `marctl up` started for this state folder; one that was started by hand goes on without a stack."""
    folder = str(state.folder)
    return find_processes(lambda process: MODULE in process.cmdline() and folder in process.cmdline())


def stop(state: State) -> bool:
    """Whether there was one."""
    found = find(state)
    for process in found:
        stop_tree(process)
    return bool(found)
