"""Processors and memory that this process, and so the workers beside it, may use: of the machine, or of its container.

In a container the machine's own figures are too large. Linux's control groups say what it may have: version 2 in
`memory.max`, `memory.current` and `cpu.max` (kernel documentation, admin-guide/cgroup-v2), version 1 in
`memory.limit_in_bytes`, `memory.usage_in_bytes` and `cpu.cfs_quota_us`. A group is limited by those above it, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def available_bytes(groups: Path = GROUPS, root: Path = ROOT) -> int:
    """Memory that can be had without taking it from somebody else."""
    left = [psutil.virtual_memory().available]
    for folder in folders("memory", groups, root):
        limit = number(folder / "memory.max") or number(folder / "memory.limit_in_bytes")
        used = number(folder / "memory.current") or number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(max(limit - used + inactive_bytes(folder), 0))
    return min(left)


def cores(groups: Path = GROUPS, root: Path = ROOT) -> float:
    """Processors, in parts where a container may use only a part of one."""
    found = [float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)]
    for folder in folders("cpu", groups, root):
        with suppress(OSError, ValueError, IndexError):
            quota, period = (folder / "cpu.max").read_text().split()[:2]
            found += [int(quota) / int(period)] if quota != "max" else []
        quota_us, period_us = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            found.append(quota_us / period_us)
    return min(found)


def folders(controller: str, groups: Path, root: Path) -> Iterator[Path]:
    """This process's control group and all above it, as far as they can be seen; those of a container begin at the
    root."""
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            top = root / controllers if (root / controllers).is_dir() else root / controller
            if not controllers or controller in controllers.split(","):
                place = Path(path.lstrip("/"))
                yield from (top / each for each in (place, *place.parents))


def inactive_bytes(folder: Path) -> int:
    """Pages of files that nobody has used lately: they count as used, and the kernel gives them up first."""
    with suppress(OSError, ValueError):
        lines = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return int(lines.get("total_inactive_file") or lines.get("inactive_file") or 0)
    return 0


def number(path: Path) -> int | None:
    """None where there is no such file, or no limit in it."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
