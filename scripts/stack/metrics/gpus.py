"""What NVIDIA's own tool tells of each GPU; nothing where there is none."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

MIB = 1 << 20
FIELDS = {
    "utilization.gpu": ("marctl_gpu_utilization_ratio", "Share of the time in which the GPU computed.", 0.01),
    "memory.used": ("marctl_gpu_memory_used_bytes", "GPU memory in use.", MIB),
    "memory.total": ("marctl_gpu_memory_bytes", "GPU memory.", MIB),
    "power.draw": ("marctl_gpu_power_watts", "Power that the GPU draws.", 1),
    "temperature.gpu": ("marctl_gpu_temperature_celsius", "Temperature of the GPU.", 1),
}
"""Field of `nvidia-smi --query-gpu` to the figure's name, its text, and what it is multiplied by."""
TOOL = "nvidia-smi"
TIMEOUT_S = 2.0
KEEP_S = 5.0
"""For so long an answer is given again: the tool takes a tenth of a second and more."""


class Gpus:
    """`marctl_gpus` is always there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[list[str]] = []
        self._asked = float("-inf")

    def collect(self) -> Iterator[Metric]:
        rows = self._latest()
        yield GaugeMetricFamily("marctl_gpus", "GPUs of this machine.", len(rows))
        if not rows:
            return
        for place, (name, text, unit) in enumerate(FIELDS.values(), 1):
            family = GaugeMetricFamily(name, text, labels=("gpu",))
            for row in rows:
                value = number(row[place])
                if value is not None:
                    family.add_metric((row[0],), value * unit)
            yield family

    def _latest(self) -> list[list[str]]:
        with self._lock:
            if time.monotonic() - self._asked > KEEP_S:
                self._asked = time.monotonic()
                self._rows = ask(shutil.which(TOOL))
            return self._rows


def ask(tool: str | None) -> list[list[str]]:
    """For each GPU its place and the values of FIELDS, as text."""
    if tool is None:
        return []
    return [row for row in query(tool, ["index", *FIELDS]) if is_whole(row)]


def names_of_gpus() -> list[str]:
    """Such as `NVIDIA H100 80GB HBM3`."""
    tool = shutil.which(TOOL)
    return [] if tool is None else [row[1] for row in query(tool, ["index", "name"]) if len(row) == 2]


def query(tool: str, fields: Sequence[str]) -> list[list[str]]:
    """A row for each GPU; none if the tool does not answer."""
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def is_whole(row: Sequence[str]) -> bool:
    return len(row) == 1 + len(FIELDS)


def number(text: str) -> float | None:
    """None for what this GPU does not tell, such as `[N/A]`."""
    try:
        return float(text)
    except ValueError:
        return None
