"""Who was at work when a worker ended: a version that ends the process again and again is no longer run in it.

Each worker notes in a small memory-mapped file whose code it is about to run, which outlives whatever ends the process:
a fault of a native library, the kernel when memory is short, TorchServe when an answer is overdue. The next worker
finds the file, whose lock went with its owner.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)
DIGEST_BYTES = 64
SLOTS = 9
"""The first one is of the thread that answers, the others of loads."""
NOBODY = bytes(DIGEST_BYTES)
DEATHS_FILE = "deaths"
NOTE = "at-work-"
MOST_DEATHS = 3
WITHIN_S = 600.0
"""A version under whose hands so many workers ended within this time is left alone for as long."""


class Blame:
    """One worker's note, and what those before it left."""

    def __init__(self, folder: Path) -> None:
        self._deaths = folder / DEATHS_FILE
        self._free = list(range(1, SLOTS))
        try:
            collect(folder)
            self._note = make_note(folder / f"{NOTE}{os.getpid()}")
        except OSError as err:
            log.warning("no note of who is at work (%s): a version that ends its worker is not found out", err.strerror)
            self._note = mmap.mmap(-1, SLOTS * DIGEST_BYTES)
        self._suspects = self._read()

    def suspect(self, archive: str) -> bool:
        """Whether a version ended too many workers; `archive`: its digest, 64 hex digits."""
        until = self._suspects.get(archive)
        return until is not None and time.time() < until

    @contextmanager
    def answering(self, archive: str) -> Iterator[None]:
        """For the one thread that answers."""
        self._note[:DIGEST_BYTES] = archive.encode()
        try:
            yield
        finally:
            self._note[:DIGEST_BYTES] = NOBODY

    @contextmanager
    def loading(self, archive: str) -> Iterator[None]:
        """For any thread; more of them than there are slots go unnoticed."""
        slot = self._free.pop() if self._free else None
        if slot is None:
            yield
            return
        place = slice(slot * DIGEST_BYTES, (slot + 1) * DIGEST_BYTES)
        self._note[place] = archive.encode()
        try:
            yield
        finally:
            self._note[place] = NOBODY
            self._free.append(slot)

    def _read(self) -> dict[str, float]:
        """Suspects, and until when."""
        try:
            lines = [line.split() for line in self._deaths.read_text().splitlines()]
        except OSError:
            return {}
        recent = [(float(at), archive) for at, archive in lines if time.time() - float(at) < WITHIN_S]
        counts = Counter(archive for _, archive in recent)
        last = dict(sorted((archive, at) for at, archive in recent))
        return {archive: last[archive] + WITHIN_S for archive, count in counts.items() if count >= MOST_DEATHS}


def make_note(path: Path) -> mmap.mmap:
    """A file that is all there, or it would end its process where the disk is full. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)  # kept open: the lock goes with the process
    os.posix_fallocate(file, 0, SLOTS * DIGEST_BYTES)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return mmap.mmap(file, SLOTS * DIGEST_BYTES)


def collect(folder: Path) -> None:
    """Write down who was at work in the workers that have ended. Raises OSError."""
    for path in folder.glob(f"{NOTE}*"):
        with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()  # another worker that starts at this moment finds it gone
            blamed = blamed_in(file.read())
            with (folder / DEATHS_FILE).open("a") as deaths:
                deaths.writelines(f"{time.time():.0f} {archive}\n" for archive in blamed)


def blamed_in(note: bytes) -> list[str]:
    """Those that were being loaded, whose code ran for the first time; where there were none, the one that answered."""
    found = [note[at : at + DIGEST_BYTES] for at in range(0, len(note), DIGEST_BYTES)]
    digests = [entry.decode("ascii", "replace") if entry.strip(b"\0") else "" for entry in found]
    return [digest for digest in digests[1:] if digest] or [digest for digest in digests[:1] if digest]
