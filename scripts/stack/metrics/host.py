"""What the machine has and how much of it is in use, whoever uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

MODES = ("user", "nice", "system", "iowait", "steal", "idle")


class Host:
    """`folder`: on the file system whose room is told, which holds the state, its logs and records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        times = psutil.cpu_times()
        cpu = CounterMetricFamily("marctl_host_cpu_seconds", "Time of all processors, by mode.", labels=("mode",))
        for mode in MODES:
            if hasattr(times, mode):
                cpu.add_metric((mode,), getattr(times, mode))
        yield cpu
        yield GaugeMetricFamily("marctl_host_cpus", "Processors.", psutil.cpu_count() or 1)
        yield GaugeMetricFamily(
            "marctl_host_load1", "Processes that ran or waited to, over a minute.", os.getloadavg()[0]
        )
        memory = psutil.virtual_memory()
        yield GaugeMetricFamily("marctl_host_memory_bytes", "Memory.", memory.total)
        yield GaugeMetricFamily("marctl_host_memory_available_bytes", "Memory that can be had.", memory.available)
        disk = os.statvfs(self._folder)
        yield GaugeMetricFamily("marctl_disk_size_bytes", "Of the state's file system.", disk.f_frsize * disk.f_blocks)
        yield GaugeMetricFamily("marctl_disk_free_bytes", "Free there.", disk.f_frsize * disk.f_bavail)
