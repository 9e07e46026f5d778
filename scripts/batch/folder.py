"""A folder that results go to, on this machine or on an object store. Every file appears there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import pyarrow.fs as pafs
from msgspec import Struct

from marctl.batch.places import Place, info_of, place_of
from marctl.core.errors import UserError
from marctl.core.files import WriteFailed, replacing, write_atomically, write_failed

LOCK = "_job/lock"
BEAT_S = 10.0
"""How often the owner of a remote folder says that it lives; it counts as dead after several times as long."""
DEAD_BEATS = 6


class FolderBusy(UserError):
    """Another job works on this output folder."""


class Claim(Struct, frozen=True):
    """Who works on a remote folder."""

    token: str
    host: str
    pid: int
    time: float


class Folder:
    """`put`, `get` and `names` take names relative to the folder."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def put(self, name: str, content: bytes) -> None:
        """Raises WriteFailed."""
        if self.place.local is not None:
            write_atomically(self.place.local / name, content)
            return
        # An object store shows an object when its upload is complete. All of it is here, so that none is ever short.
        try:
            with self.place.filesystem.open_output_stream((self.place / name).path) as stream:
                stream.write(content)
        except OSError as err:
            raise WriteFailed(f"cannot write {(self.place / name).shown}: {' '.join(str(err).split())}") from err

    def get(self, name: str) -> bytes | None:
        """None for a file that is not there."""
        try:
            with self.place.filesystem.open_input_stream((self.place / name).path, compression=None) as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise UserError(f"{(self.place / name).shown}: {err}") from err
        return content

    def names(self, folder: str) -> list[str]:
        """Files directly in a folder below this one; unfinished ones are left out."""
        selector = pafs.FileSelector((self.place / folder).path, allow_not_found=True)
        infos = self.place.filesystem.get_file_info(selector)
        return sorted(
            info.base_name for info in infos if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        )

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError, OSError):
            self.place.filesystem.delete_file((self.place / name).path)

    def remove_folder(self, name: str) -> None:
        if self.place.local is not None:
            shutil.rmtree(self.place.local / name, ignore_errors=True)
            return
        with suppress(FileNotFoundError, OSError):
            self.place.filesystem.delete_dir((self.place / name).path)

    def join(self, name: str, parts: Iterator[bytes]) -> None:
        """One file of many, in order. Raises WriteFailed."""
        local = self.place.local
        if local is None:
            self.put(name, b"".join(parts))
            return
        with replacing(local / name) as partial, partial.open("wb") as file:
            file.writelines(parts)

    @property
    def is_empty(self) -> bool:
        info = info_of(self.place)
        if info.type == pafs.FileType.NotFound:
            return True
        if info.type == pafs.FileType.File:
            raise UserError(f"{self.place.shown} is a file; expected an output folder")
        selector = pafs.FileSelector(self.place.path, allow_not_found=True)
        return not self.place.filesystem.get_file_info(selector)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The right to work on this folder, for one job at a time. Raises FolderBusy."""
        local = self.place.local
        with claimed_here(local) if local is not None else claimed_there(self):
            yield


def folder_of(text: str) -> Folder:
    return Folder(place_of(text))


@contextmanager
def claimed_here(folder: Path) -> Iterator[None]:
    """By a lock that goes with the process, however it ends."""
    path = folder / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as err:
        raise write_failed(path, err) from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.seek(0)
            raise busy(str(folder), file.read().decode(errors="replace")) from err
        with suppress(OSError):  # a full disk; the lock holds all the same
            file.truncate(0)
            file.write(f"pid {os.getpid()}".encode())
            file.flush()
        yield


@contextmanager
def claimed_there(folder: Folder) -> Iterator[None]:
    """By an object that its owner renews. Two that begin within the same moment see each other's."""
    found = read_claim(folder)
    if found is not None and is_held(found):
        raise busy(folder.place.shown, f"{found.host}, pid {found.pid}")
    claim = Claim(secrets.token_hex(8), socket.gethostname(), os.getpid(), time.time())
    folder.put(LOCK, msgspec.json.encode(claim))
    time.sleep(0.5)
    winner = read_claim(folder)
    if winner is None or winner.token != claim.token:
        raise busy(folder.place.shown, "it began in the same moment")
    stop = threading.Event()
    beating = threading.Thread(target=beat, args=(folder, claim, stop), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        folder.remove(LOCK)


def is_held(claim: Claim) -> bool:
    """Of another machine only its silence tells that it is dead."""
    if claim.host == socket.gethostname():
        return psutil.pid_exists(claim.pid)
    return time.time() - claim.time < BEAT_S * DEAD_BEATS


def beat(folder: Folder, claim: Claim, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(UserError):
            folder.put(LOCK, msgspec.json.encode(msgspec.structs.replace(claim, time=time.time())))


def read_claim(folder: Folder) -> Claim | None:
    content = folder.get(LOCK)
    try:
        return None if not content else msgspec.json.decode(content, type=Claim)
    except msgspec.DecodeError:
        return None


def busy(where: str, who: str) -> FolderBusy:
    return FolderBusy(f"another job works on {where} ({who or 'its process is not known'}); wait for it, or stop it")
