"""Writes files so that a full disk, a kill or a power failure leaves the old content or the whole new one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from marctl.core.errors import UserError


class WriteFailed(UserError):
    """The file system did not take a file; what was there before is untouched."""


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Replace a file, durably; its folder is made if missing. Raises WriteFailed."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            write_all(handle, data)
        finally:
            os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The same for a file that somebody else writes, to the path that this yields. Raises WriteFailed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as err:
        raise write_failed(path, err) from err
    finally:
        with suppress(OSError):  # it would hide why the file could not be written
            partial.unlink(missing_ok=True)


@contextmanager
def made_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `target`, and of all that is in it, when the block ends.

    What a killed process left of such a folder goes first. Raises WriteFailed.
    """
    partial, former = (target.with_name(f".{target.name}.{os.getpid()}.{state}") for state in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
        remove_leftovers(target)
        yield partial
        for path in partial.iterdir():
            sync(path)
        with suppress(FileNotFoundError):
            os.replace(target, former)
        os.replace(partial, target)
        sync(target.parent)
    except OSError as err:
        if former.exists() and not target.exists():
            os.replace(former, target)
        raise write_failed(target, err) from err
    finally:
        for rest in (partial, former):
            shutil.rmtree(rest, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Of processes that ended while they made this folder; one that ended between two renames is undone."""
    for path in target.parent.iterdir():
        start, _, state = path.name.rpartition(".")
        start, _, pid = start.rpartition(".")
        if start != f".{target.name}" or state not in ("partial", "former") or not pid.isdigit() or is_alive(int(pid)):
            continue
        if state == "former" and not target.exists():
            os.replace(path, target)
        shutil.rmtree(path, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One writer in a folder at a time, without a file of its own that would be left behind; others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refuse_full(folder: Path, needed_bytes: int) -> None:
    """Raise WriteFailed before something is begun that could not be told to the end."""
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < needed_bytes:
        sizes = f"{free >> 10} KiB are free in {folder}, {needed_bytes >> 10} are needed"
        raise WriteFailed(f"No space left on device: {sizes}; make room there and try again, nothing was changed")


def write_all(handle: int, data: bytes) -> None:
    """`os.write` may take a part only, as it does when the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def sync(path: Path) -> None:
    """Make a file's content durable, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_failed(path: Path, err: OSError) -> WriteFailed:
    """The message, with the cure where there is one."""
    full = err.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "; make room there and try again, nothing was changed" if full else ""
    return WriteFailed(f"cannot write {path}: {err.strerror or err}{cure}")
