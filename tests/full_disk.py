"""A disk of one megabyte, to be filled up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """An empty file system of its own; the test is skipped where it may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def fill(disk: Path) -> Path:
    """Take all that is left; returns the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(block)):
                    pass
    return ballast
