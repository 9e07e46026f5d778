"""Processor time of a tree of processes, by role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import psutil


@dataclass
class Usage:
    """Processor seconds of a process and all its descendants since this was made; those that ended meanwhile count as
    far as they were last seen. `role` names a process, from its command line."""

    root: psutil.Process
    role: Callable[[list[str]], str] = lambda _: "all"
    before: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()
        self.before = dict(self.last)

    def look(self) -> dict[str, float]:
        """Seconds so far, by role."""
        for process in self._tree():
            try:
                times = process.cpu_times()
                if process.pid not in self.roles:
                    self.roles[process.pid] = self.role(process.cmdline())
            except psutil.Error:
                continue
            self.last[process.pid] = times.user + times.system
        found: dict[str, float] = {}
        for pid, seconds in self.last.items():
            role = self.roles[pid]
            found[role] = found.get(role, 0.0) + seconds - self.before.get(pid, 0.0)
        return found

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.Error:
            return []


def machine_busy_seconds() -> float:
    """Processor seconds that all processes of the machine have used since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
