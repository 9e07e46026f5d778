"""A file in which a worker's records wait while Redis is away or full.

Each worker process appends to a file of its own; scripts/records/ drains them, also after the worker has ended. A file
is a series of frames: one byte for the kind, four for the payload's length, the payload. The first one is the worker's
declaration, so that a file can be read without Redis.

Both sides hold the file's lock while they use it. The drain renames a file before it reads it, and a worker that finds
its file renamed begins another one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

FOLDER_VARIABLE, BYTES_VARIABLE = "MARCTL_SPILL", "MARCTL_SPILL_BYTES"
DEFAULT_BYTES = 256 << 20
"""Of all workers' files together."""
SUFFIX = ".spill"
SALT = "salt"
SALT_BYTES = 32
DECLARATION, PREDICTION, LABEL = 0, 1, 2
HEAD = struct.Struct(">BI")


class Frame(NamedTuple):
    kind: int
    payload: bytes


class Spill:
    """One worker's file. For one thread."""

    def __init__(self, folder: Path, writer: str, limit_bytes: int = DEFAULT_BYTES) -> None:
        """Raises OSError if the folder cannot be made."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / (writer + SUFFIX)
        self._limit_bytes = limit_bytes

    def append(self, declaration: bytes, frames: Sequence[Frame]) -> bool:
        """Append all frames or none. False where the limit is reached or the disk does not take them."""
        data = b"".join(map(packed, frames))
        try:
            with self._locked() as file:
                size = os.fstat(file).st_size
                data = data if size else packed(Frame(DECLARATION, declaration)) + data
                if held_bytes(self._folder) + len(data) > self._limit_bytes:
                    return False
                try:
                    write_all(file, data)
                except OSError:
                    os.ftruncate(file, size)
                    return False
        except OSError:
            return False
        return True

    def salt(self) -> bytes:
        """The salt of all workers that spill to this folder; the first of them makes it. Raises OSError."""
        path = self._folder / SALT
        if not path.exists():
            partial = self._write_aside(secrets.token_hex(SALT_BYTES // 2).encode())
            with suppress(FileExistsError):  # unlike a rename, a link keeps what another worker has just put there
                os.link(partial, path)
            partial.unlink()
        return path.read_bytes()

    def keep_salt(self, salt: bytes) -> None:
        """Take over the salt that Redis has, for a worker that starts without Redis. Raises OSError."""
        path = self._folder / SALT
        if not path.exists() or path.read_bytes() != salt:
            os.replace(self._write_aside(salt), path)

    def _write_aside(self, content: bytes) -> Path:
        partial = self._path.with_suffix(".partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        return partial

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """This worker's file, open for appending, which the drain leaves alone meanwhile."""
        while True:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_current(file):
                    yield file
                    return
            finally:
                os.close(file)

    def _is_current(self, file: int) -> bool:
        """Whether the open file still has its name."""
        try:
            return os.stat(self._path).st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            return False


def open_spill(writer: str) -> Spill | None:
    """The spill file in the folder that the environment names. Raises OSError, ValueError."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Spill(Path(folder), writer, int(os.environ.get(BYTES_VARIABLE, DEFAULT_BYTES))) if folder else None


def held_bytes(folder: Path) -> int:
    """What the folder's files hold, those included that are being drained."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # drained meanwhile
                total += entry.stat().st_size
    return total


def write_all(file: int, data: bytes) -> None:
    """`os.write` may take a part only, as it does when the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def packed(frame: Frame) -> bytes:
    return HEAD.pack(frame.kind, len(frame.payload)) + frame.payload


def frames_of(data: bytes) -> tuple[list[Frame], bytes]:
    """All whole frames, and what is left: the part of a frame that a killed worker was writing."""
    frames, start = [], 0
    while len(data) - start >= HEAD.size:
        kind, length = HEAD.unpack_from(data, start)
        end = start + HEAD.size + length
        if end > len(data):
            break
        frames.append(Frame(kind, data[start + HEAD.size : end]))
        start = end
    return frames, data[start:]
