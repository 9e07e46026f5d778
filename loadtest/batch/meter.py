"""What the processes of one batch job use while they run: processor time of all, memory of each kind at its most."""

from __future__ import annotations

import subprocess
import threading
from collections import defaultdict
from contextlib import suppress

import psutil

from loadtest.batch.jobs import tree

EVERY_S = 0.5
MIB = 1 << 20


class Meter(threading.Thread):
    """Looks at a command and all below it until it ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._cpu_s: dict[int, tuple[str, float]] = {}
        self.peak_mib: dict[str, float] = defaultdict(float)
        """By kind of process: that of the largest one."""

    def run(self) -> None:
        while self._process.poll() is None:
            for each in tree(psutil.Process(self._process.pid)):
                with suppress(psutil.Error):
                    self._look(each)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EVERY_S)

    def _look(self, process: psutil.Process) -> None:
        kind = kind_of(" ".join(process.cmdline()))
        times = process.cpu_times()
        self._cpu_s[process.pid] = kind, times.user + times.system
        with suppress(psutil.Error):
            memory = process.memory_full_info().uss / MIB
            self.peak_mib[kind] = max(self.peak_mib[kind], memory)

    @property
    def cpu_s(self) -> dict[str, float]:
        """By kind of process, up to the last look."""
        found: dict[str, float] = defaultdict(float)
        for kind, spent in self._cpu_s.values():
            found[kind] += spent
        return {kind: round(spent, 2) for kind, spent in sorted(found.items())}


def kind_of(command: str) -> str:
    if "ray::MapWorker" in command:
        return "actors"
    return "command" if "marctl.cli" in command else "Ray"
