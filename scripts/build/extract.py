"""Extracts exactly the archive that was read and checked, whoever replaces or alters the file meanwhile."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from marctl.build.reader import Archive
from marctl.core.errors import UserError

CHUNK_BYTES = 1 << 20


class ArchiveChanged(UserError):
    """A file is another one by now than the archive that was checked."""


def extract(archive: Archive, target: Path) -> None:
    """The archive's files, below `target`; a name that leads out of it does not.

    Raises ArchiveChanged, OSError, BadZipFile.
    """
    with private_copy(archive, target.parent) as copy, zipfile.ZipFile(copy) as file:
        file.extractall(target)


@contextmanager
def private_copy(archive: Archive, folder: Path) -> Iterator[IO[bytes]]:
    """A copy without a name, which nobody else can open, and whose digest is the archive's. Raises ArchiveChanged."""
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=folder) as copy:
        with archive.path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
        if digest.hexdigest() != archive.sha256:
            raise ArchiveChanged(
                f"{archive.path} was changed after it was checked: sha256 {digest.hexdigest()[:16]}... in place of "
                f"{archive.sha256[:16]}...; nothing of it is loaded"
            )
        copy.seek(0)
        yield copy
