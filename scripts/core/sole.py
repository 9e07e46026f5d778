"""A right that one process at a time has: a locked file that names it, and that the kernel frees when it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from marctl.core.errors import UserError
from marctl.core.files import write_failed
from marctl.core.process import Identity


@contextmanager
def sole_holder(path: Path, taken: Callable[[], UserError]) -> Iterator[None]:
    """Hold the right within the block. Raises what `taken` makes if another process has it, and WriteFailed."""
    try:
        file = path.open("a+b")
    except OSError as err:
        raise write_failed(path, err) from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise taken() from err
        try:
            file.truncate(0)
            file.write(msgspec.json.encode(Identity.of(os.getpid())))
            file.flush()
        except OSError as err:
            raise write_failed(path, err) from err
        yield


def holder(path: Path) -> Identity | None:
    """The process that has the right; None if none has."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Identity)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.alive else None
