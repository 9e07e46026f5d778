"""Batch jobs as a study runs them: by the command, with what it left to compare."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.stack import MARCTL, PROJECT


def start(archive: Path, inputs: Sequence[Path], output: Path, *options: str) -> subprocess.Popen[str]:
    command = [*MARCTL, "batch", str(archive), *map(str, inputs), str(output), "--json", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_interrupts)


def hear_interrupts() -> None:
    """A shell that starts a study in the background lets it, and its children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Finished:
    """A job that ran to its end."""

    manifest: dict[str, Any]
    seconds: float
    cpu_s: Mapping[str, float]
    """By kind of process (loadtest/batch/meter.py)."""
    peak_mib: Mapping[str, float]

    @property
    def rows(self) -> int:
        count: int = self.manifest["rows"]["predicted"]
        return count


def finish(archive: Path, inputs: Sequence[Path], output: Path, *options: str) -> Finished:
    """Raises RuntimeError with the command's words if it fails."""
    from loadtest.batch.meter import Meter

    started = time.monotonic()
    process = start(archive, inputs, output, *options)
    meter = Meter(process)
    meter.start()
    out, err = process.communicate()
    spent = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"marctl batch ended with {process.returncode}: {err}")
    meter.join()
    peaks = {kind: round(mib) for kind, mib in meter.peak_mib.items()}
    return Finished(json.loads(out), round(spent, 1), meter.cpu_s, peaks)


def predictions(output: Path) -> pa.Table:
    """What a job predicted, in the order of its input; when is left out."""
    return pq.read_table(output / "predictions").drop_columns(["predicted_at"])


def tree(process: psutil.Process) -> Iterator[psutil.Process]:
    """A process and all below it that still run."""
    try:
        yield from (process, *process.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def actors(process: psutil.Process) -> list[psutil.Process]:
    """Ray's processes that predict."""
    return [each for each in tree(process) if is_named(each, "ray::MapWorker")]


def is_named(process: psutil.Process, name: str) -> bool:
    try:
        return any(name in word for word in process.cmdline())
    except psutil.Error:
        return False
