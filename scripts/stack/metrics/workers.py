"""The sums of what all workers count.

Workers write their figures into memory-mapped files (handlers/torchserve/metrics.py). Counters and histograms of a
process that has ended still count; its states do not.
"""

from __future__ import annotations

import glob
import os
import struct
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from prometheus_client.core import Exemplar as OpenMetricsExemplar
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from marctl_handlers.torchserve.exemplars import Exemplar
from marctl_handlers.torchserve.metrics import TOTAL

FOLDER = "figures"
"""In the stack's temp folder."""
ENDED = "ended"
"""Stands for the process in the name of the file that holds the sums of all that have ended."""
CLOCK_S = 2.0
"""By how much a process's start may seem later than that of its file."""
STAGES = "handler_stage_seconds"
"""The histogram whose buckets have exemplars, for the stage TOTAL."""
Bucket = tuple[str, str, str, str]
"""Model, version, role, upper bound."""


class WorkerFigures:
    """The sums over all workers' files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._forget_states()
            files = [name for name in glob.glob(f"{glob.escape(str(self._folder))}/*.db") if is_whole(name)]
            latest = self._exemplars()
            for metric in MultiProcessCollector.merge(files):
                yield with_exemplars(metric, latest) if metric.name == STAGES else metric

    def tidy(self) -> None:
        """Put the figures of processes that have ended into one file for each kind, so that a worker which fails at
        every start does not fill the disk."""
        with self._lock:
            self._forget_states()
            kinds: dict[str, list[Path]] = defaultdict(list)
            for path in self._folder.glob("[ch]*.db"):
                if not is_alive(path):
                    kinds[path.name.partition("_")[0]].append(path)
            for kind, paths in kinds.items():
                if len(paths) > 1:
                    sum_up(paths, self._folder / f"{kind}_{ENDED}.db")

    def _exemplars(self) -> dict[Bucket, Exemplar]:
        """Each bucket's latest one."""
        found: dict[Bucket, Exemplar] = {}
        for path in self._folder.glob("exemplars_*.json"):
            with suppress(OSError, msgspec.DecodeError):
                for each in msgspec.json.decode(path.read_bytes(), type=list[Exemplar]):
                    bucket = (each.model, each.version, each.role, each.le)
                    if bucket not in found or found[bucket].time_s < each.time_s:
                        found[bucket] = each
        return found

    def _forget_states(self) -> None:
        for pattern in ("gauge_*.db", "exemplars_*.json"):
            for path in self._folder.glob(pattern):
                if not is_alive(path):
                    path.unlink(missing_ok=True)


def with_exemplars(metric: Metric, latest: Mapping[Bucket, Exemplar]) -> Metric:
    """The same histogram; its buckets of whole requests name one each, where a worker has told it."""
    for i, sample in enumerate(metric.samples):
        labels = sample.labels
        if labels.get("stage") == TOTAL and "le" in labels:
            found = latest.get((labels["model"], labels["version"], labels["role"], labels["le"]))
            if found is not None:
                exemplar = OpenMetricsExemplar(found.labels, found.seconds, found.time_s)
                metric.samples[i] = sample._replace(exemplar=exemplar)
    return metric


def is_alive(path: Path) -> bool:
    """Whether the process that a file is named after still runs, and is no later one of the same number."""
    pid = path.stem.rpartition("_")[2]
    if not pid.isdecimal():
        return False
    with suppress(psutil.Error, FileNotFoundError):
        return psutil.Process(int(pid)).create_time() <= path.stat().st_mtime + CLOCK_S
    return False


def is_whole(name: str) -> bool:
    """Whether a file can be read: one that is damaged must not blank the page."""
    try:
        for _ in MmapedDict.read_all_values_from_file(name):
            pass
    except (OSError, RuntimeError, struct.error, UnicodeDecodeError):
        return False
    return True


def sum_up(paths: Iterable[Path], target: Path) -> None:
    """Replace files by one that holds the sums of their values."""
    sums: dict[str, float] = defaultdict(float)
    for path in paths:
        if is_whole(str(path)):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] += value
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    written = MmapedDict(str(partial))
    for key, value in sums.items():
        written.write_value(key, value, 0.0)
    written.close()
    os.replace(partial, target)
    for path in paths:
        if path != target:
            path.unlink(missing_ok=True)


def make_folder(temp: Path) -> Path:
    """For the workers' figures. Those of workers before a server's death stay, and go on counting."""
    folder = temp / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
