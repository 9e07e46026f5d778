"""The folder of archives that a stack serves from."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.build.reader import EXPLAIN_CONFIG, MODEL_CONFIG, Archive, read_archive
from scripts.core.errors import UserError

EXPLAINS = ".explain"
"""Marks the folder of workers that explain."""
UNPACKED = ".unpacked"
"""Under the archive's own name TorchServe would take the file in the store instead (ModelArchive.java, 0.12.0)."""


@contextmanager
def put(archive: Archive, store: Path, *, force: bool) -> Iterator[Archive]:
    """The archive as it lies in the store, copied there if it was not; as it was before if the block raises.

    Raises UserError if another file has its name, unless `force` replaces that one.
    """
    target = store / archive.path.name
    if target.exists() and read_archive(target).sha256 == archive.sha256:
        yield read_archive(target)
        return
    if target.exists() and not force:
        raise UserError(
            f"{target} is there with other content; give the archive another version, or replace it with --force"
        )
    previous = set_aside(target)
    copy(archive.path, target)
    try:
        yield read_archive(target)
    except BaseException:
        target.unlink(missing_ok=True)
        if previous:
            os.replace(previous, target)
        raise
    if previous:
        previous.unlink()


def unpack(archive: Archive, folder: Path) -> Path:
    """The archive's content, as a folder below `folder`."""
    target = folder / (archive.path.name + UNPACKED)
    shutil.rmtree(target, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive.path) as file:
            file.extractall(target)
    except (OSError, zipfile.BadZipFile) as err:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"cannot unpack {archive.path} into {folder}: {err}") from err
    return target


def unpack_explainer(archive: Archive, folder: Path) -> Path:
    """The content of an unpacked archive once more, configured to explain. The files themselves are shared."""
    target = folder / (archive.path.name + EXPLAINS + UNPACKED)
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(folder / (archive.path.name + UNPACKED), target, copy_function=os.link)
        os.replace(target / EXPLAIN_CONFIG, target / MODEL_CONFIG)
    except OSError as err:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"cannot lay {archive.path.name} out to explain in {folder}: {err}") from err
    return target


def set_aside(target: Path) -> Path | None:
    """Rename the file that is there, if any; returns its name for the time being."""
    if not target.exists():
        return None
    previous = target.with_name(f".{target.name}.previous")
    os.replace(target, previous)
    return previous


def copy(source: Path, target: Path) -> None:
    """Readers see no file or the whole file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as err:
        raise UserError(f"cannot copy {source} to {target}: {err.strerror or err}") from err
    finally:
        partial.unlink(missing_ok=True)
