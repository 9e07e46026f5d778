"""What a worker's process takes: processor time, memory, starts; in the files of handlers/torchserve/metrics.py.

A process that ends leaves the processor time that it took, so that nothing is missing after a restart.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
EVERY_S = 2.0
STATM = Path("/proc/self/statm")
LABELS = ("model", "version")


class ProcessFigures:
    """Of this process, under the model that it was started for."""

    def __init__(self, model: str, version: str) -> None:
        from prometheus_client import Counter, Gauge

        def gauge(name: str, text: str) -> Any:
            made = Gauge(f"handler_process_{name}", text, LABELS, registry=None, multiprocess_mode="livesum")
            return made.labels(model, version)

        starts = Counter("handler_process_starts_total", "Workers that loaded their model.", LABELS, registry=None)
        starts.labels(model, version).inc()
        used = Counter("handler_process_cpu_seconds_total", "Processor time of workers.", LABELS, registry=None)
        self._cpu = used.labels(model, version)
        self._memory = gauge("resident_memory_bytes", "Memory of workers.")
        self._gpu_memory = gauge("gpu_memory_bytes", "GPU memory that workers' models hold.")
        self._told_s = 0.0

    def write(self) -> None:
        used_s = time.process_time()
        self._cpu.inc(used_s - self._told_s)
        self._told_s = used_s
        self._memory.set(resident_bytes())
        self._gpu_memory.set(gpu_bytes())

    def run(self) -> None:
        while True:
            try:
                self.write()
            except Exception:
                log.exception("the process's figures could not be written")
            time.sleep(EVERY_S)


def resident_bytes() -> int:
    """0 where there is no /proc."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def gpu_bytes() -> int:
    """What torch holds of its GPUs; 0 where it is not used, or uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))


def begin_process_figures(model: str, version: str) -> None:
    """Write them from now on, in a thread of their own."""
    figures = ProcessFigures(model, version)
    threading.Thread(target=figures.run, name="process-figures", daemon=True).start()
