"""The folder of archives that a stack serves from, and where they lie unpacked for TorchServe."""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marctl.build.extract import extract
from marctl.build.reader import EXPLAIN_CONFIG, MODEL_CONFIG, Archive, read_archive
from marctl.core.errors import UserError
from marctl.core.files import replacing
from marctl.core.names import ARCHIVE_FILE
from marctl.signing.envelope import signature_file
from marctl.signing.trust import NotTrusted, Trust
from marctl.stack.document import Document, Version

EXPLAINS = ".explain"
"""Marks the folder of workers that explain."""
UNPACKED = ".unpacked"
"""Under the archive's own name TorchServe would take the file in the store instead (ModelArchive.java, 0.12.0)."""
DIGEST, DIGEST_LENGTH = "sha256:", 16
SPARE_BYTES = 64 << 20
"""Left free when an archive is unpacked, for logs and sockets."""


class ArchiveMissing(UserError):
    """The store does not hold what is declared."""


def declared_archive(store: Path, model: str, version: str, content: Version, trust: Trust | None = None) -> Archive:
    """The archive of a declared version.

    Raises ArchiveMissing if it is gone, has other content, or is no archive, and NotTrusted if nobody of `trust`
    vouches for it.
    """
    path = store / content.file
    cure = f"put the archive back, or stop declaring it: marctl unregister {model} {version}"
    if not path.is_file():
        raise ArchiveMissing(f"{path} is gone; {cure}")
    archive = read_archive(path)
    if digest_of(archive) != content.archive:
        raise ArchiveMissing(
            f"{path} has sha256 {archive.sha256[:12]}..., declared is {content.archive[7:19]}...; {cure}"
        )
    if (archive.name, archive.version) != (model, version):
        raise ArchiveMissing(f"{path} is {archive.name} {archive.version}, not {model} {version}; {cure}")
    if trust is not None:
        trust.check(path, archive.statement)
    return archive


def missing(before: Document, after: Document, store: Path, trust: Trust | None = None) -> list[str]:
    """What of `after` would have to be loaded and is not in the store, has another content there, or is not trusted."""
    found = []
    for model, version, content in after.versions():
        there = before.find(model, version)
        if there is None or there.archive != content.archive:
            try:
                declared_archive(store, model, version, content, trust)
            except (ArchiveMissing, NotTrusted) as err:
                found.append(str(err))
    return found


def digest_of(archive: Archive) -> str:
    """As the document names it."""
    return DIGEST + archive.sha256


def file_name(archive: Archive) -> str:
    """What an archive is called in the store: as it came, unless that name could mean something else."""
    name = archive.path.name
    return name if ARCHIVE_FILE.fullmatch(name) else f"{archive.name}-{archive.version}.mar"


@contextmanager
def put(archive: Archive, store: Path, *, force: bool) -> Iterator[Archive]:
    """The archive as it lies in the store, copied there if it was not, with its signatures if it has any.

    All is as it was before if the block raises. Raises UserError if another file has its name, unless `force` replaces
    that one.
    """
    target = store / file_name(archive)
    if target.exists() and read_archive(target).sha256 == archive.sha256:
        if signature_file(archive.path).exists():
            copy_signatures(archive, target)
        yield read_archive(target)
        return
    if target.exists() and not force:
        raise UserError(
            f"{target} is there with other content; give the archive another version, or replace it with --force"
        )
    replaced = {path: set_aside(path) for path in (target, signature_file(target))}
    try:
        copy_signatures(archive, target)
        copy(archive.path, target)
        yield read_archive(target)
    except BaseException:
        for path, previous in replaced.items():
            path.unlink(missing_ok=True)
            if previous:
                os.replace(previous, path)
        raise
    for previous in replaced.values():
        if previous:
            previous.unlink()


def unpacked_folder(archive: Archive, folder: Path) -> Path:
    """Where it is unpacked; the digest in the path tells which content a registered version has."""
    return content_folder(folder, digest_of(archive), archive.path.name)


def content_folder(folder: Path, digest: str, file: str) -> Path:
    """The same of an archive that is known by what the document says of it."""
    return folder / digest.removeprefix(DIGEST)[:DIGEST_LENGTH] / (file + UNPACKED)


def unpack(archive: Archive, folder: Path) -> Path:
    """The archive's content, as a folder below `folder`; nothing to do if it is there. Raises UserError."""
    target = unpacked_folder(archive, folder)
    if target.is_dir():
        return target
    refuse_too_large(archive, folder)
    with made(target, f"cannot unpack {archive.path} into {folder}") as partial:
        extract(archive, partial)
    return target


@contextmanager
def made(target: Path, failure: str) -> Iterator[Path]:
    """A folder to fill, under a name of its own until the block ends. Raises UserError, and nothing is left then."""
    partial = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, target)
    except (OSError, zipfile.BadZipFile, zlib.error) as err:
        if not target.is_dir():
            raise UserError(f"{failure}: {err}") from err
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_too_large(archive: Archive, folder: Path) -> None:
    """Raise UserError before a disk is filled up."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    packed = archive.path.stat().st_size  # of the copy that it is unpacked from
    needed, free = packed + sum(archive.files.values()), shutil.disk_usage(place).free
    if needed + min(SPARE_BYTES, free // 10) > free:
        raise UserError(
            f"{archive.path} needs {needed >> 20} MiB to unpack, {place} has {free >> 20} MiB left; make room there"
        )


def unpack_explainer(archive: Archive, folder: Path) -> Path:
    """The content of an unpacked archive once more, configured to explain. The files themselves are shared."""
    source = unpack(archive, folder)
    target = source.with_name(archive.path.name + EXPLAINS + UNPACKED)
    if target.is_dir():
        return target
    with made(target, f"cannot lay {archive.path.name} out to explain in {folder}") as partial:
        shutil.copytree(source, partial, copy_function=os.link, dirs_exist_ok=True)
        os.replace(partial / EXPLAIN_CONFIG, partial / MODEL_CONFIG)
    return target


def forget_unpacked(folder: Path, digest: str, archive: str) -> None:
    """Remove what was unpacked of an archive that is no longer served."""
    place = folder / digest
    for name in (archive + UNPACKED, archive + EXPLAINS + UNPACKED):
        shutil.rmtree(place / name, ignore_errors=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def set_aside(target: Path) -> Path | None:
    """Rename the file that is there, if any; returns its name for the time being."""
    if not target.exists():
        return None
    previous = target.with_name(f".{target.name}.previous")
    os.replace(target, previous)
    return previous


def copy_signatures(archive: Archive, target: Path) -> None:
    """Beside the archive's copy, if it has any. Raises WriteFailed."""
    source, there = signature_file(archive.path), signature_file(target)
    if source.exists() and not (there.exists() and source.samefile(there)):
        copy(source, there)


def copy(source: Path, target: Path) -> None:
    """Readers see no file or the whole file. Raises WriteFailed."""
    with replacing(target) as partial:
        shutil.copyfile(source, partial)
