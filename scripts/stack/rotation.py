"""Keeps the logs of processes that do not rotate their own: each is copied aside when it is large, and begun anew.

They write through a descriptor that was opened for appending, so a file that is cut goes on from its beginning. What is
written between the copy and the cut is lost.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from marctl.core.process import LOG_BYTES

EVERY_S = 10.0
NAMES = ("gateway.log", "console.log", "redis.log", "features.log", "reconciler.log", "autoscaler.log")


def rotate_in_place(path: Path, most_bytes: int = LOG_BYTES) -> None:
    """Raises OSError where the disk has no room for the copy; the log stays as it is then."""
    if not path.exists() or path.stat().st_size <= most_bytes:
        return
    former, partial = path.with_name(f"{path.name}.1"), path.with_name(f"{path.name}.partial")
    try:
        shutil.copyfile(path, partial)
        os.replace(partial, former)
    finally:
        partial.unlink(missing_ok=True)
    os.truncate(path, 0)


@contextmanager
def rotating(logs: Path, names: Sequence[str] = NAMES, every_s: float = EVERY_S) -> Iterator[None]:
    """Look after these files within the block."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(every_s):
            for name in names:
                with suppress(OSError):
                    rotate_in_place(logs / name)

    threading.Thread(target=run, name="log-rotation", daemon=True).start()
    try:
        yield
    finally:
        stopping.set()
