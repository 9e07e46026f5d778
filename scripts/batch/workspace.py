"""A folder on this machine for one run: the extracted archive, and Ray's own files. It goes when the run ends; what a
killed run left goes when the next one begins."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "marctl-batch-"
LONGEST = 40
"""Characters of a temporary folder in which Ray's sockets still find room (unix(7): 108 bytes)."""


@contextmanager
def workspace() -> Iterator[Path]:
    """The folder; nobody else can read it."""
    base = Path(tempfile.gettempdir())
    base = base if len(str(base)) <= LONGEST else Path("/tmp")
    remove_leftovers(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(base: Path) -> None:
    """Folders of this user's whose owner is gone. One without a lock has only just been made, or will never be used."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.stat().st_uid != os.getuid() or folder.is_symlink():
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
