"""Where rows come from and predictions go: local paths, and every URI that pyarrow or fsspec can open."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from marctl.core.errors import UserError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WILDCARDS = re.compile(r"[*?\[]")


class NoSuchPlace(UserError):
    """A path or URI that cannot be opened."""


@dataclass(frozen=True)
class Place:
    """A file or folder on some file system. `path` is what the file system calls it."""

    text: str
    """As the user wrote it; a local path is made absolute."""
    filesystem: Any
    path: str

    @property
    def local(self) -> Path | None:
        """The path on this machine; None for a remote place."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    @property
    def shown(self) -> str:
        """Without the query, which says how to get there and not what it is."""
        return self.text.partition("?")[0] if SCHEME.match(self.text) else self.text

    def at(self, path: str) -> Place:
        """Another place on the same file system."""
        if not SCHEME.match(self.text):
            return Place(path, self.filesystem, path)
        address, mark, query = self.text.partition("?")
        own, other = self.path.strip("/"), path.strip("/")
        base = address.rstrip("/").removesuffix(own) if own else address
        return Place(f"{base}{other}{mark}{query}", self.filesystem, path)

    def __truediv__(self, name: str) -> Place:
        return self.at(f"{self.path.rstrip('/')}/{name}")


def place_of(text: str) -> Place:
    """Raises NoSuchPlace."""
    if not SCHEME.match(text):
        if "\0" in text:
            raise NoSuchPlace(f"{text!r}: a path has no zero byte in it")
        path = str(Path(text).absolute())
        return Place(path, pafs.LocalFileSystem(), path)
    refuse_secrets(text)
    try:
        filesystem, path = opened(text)
    except (OSError, ValueError, ImportError, TypeError) as err:
        raise NoSuchPlace(f"{text}: {' '.join(str(err).split())}") from err
    return Place(text, filesystem, path)


def opened(text: str) -> tuple[Any, str]:
    """By pyarrow itself, or else by fsspec, whose further schemes may need a package of their own."""
    from pyarrow.lib import ArrowInvalid

    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except ArrowInvalid as err:
        if "Unrecognized filesystem type" not in str(err):
            raise
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(text)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
    return filesystem, path


def refuse_secrets(text: str) -> None:
    """URIs stand in the manifest and in messages, where no password may be."""
    if "@" in urlsplit(text).netloc:
        raise NoSuchPlace(
            "a URI must not hold a key or password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the file "
            "system reads, in the environment"
        )


def find_files(texts: Iterable[str]) -> list[Place]:
    """The files that paths, folders and patterns name, each once, in their order. Raises NoSuchPlace."""
    found = {place.text: place for text in texts for place in expanded(text)}
    return list(found.values())


def expanded(text: str) -> list[Place]:
    """Of a folder all files below it, but for names that begin with `.` or `_`, which readers of data pass over."""
    if WILDCARDS.search(text.partition("?")[0] if SCHEME.match(text) else text) and not exists(text):
        return matching(text)
    place = place_of(text)
    info = info_of(place)
    if info.type == pafs.FileType.NotFound:
        raise NoSuchPlace(f"{place.shown}: no such file or folder")
    if info.type == pafs.FileType.Directory:
        files = listed(place)
        if not files:
            raise NoSuchPlace(f"{place.shown}: no file in this folder")
        return files
    return [place]


def exists(text: str) -> bool:
    """Whether a local file has this very name, wildcards and all."""
    return not SCHEME.match(text) and Path(text).exists()


def matching(text: str) -> list[Place]:
    """`*` and `?` stand for anything but `/`, `**/` for any folders."""
    address, mark, query = text.partition("?") if SCHEME.match(text) else (text, "", "")
    head = WILDCARDS.split(address)[0].rpartition("/")[0]
    base = place_of(f"{head}{mark}{query}" if head or not address.startswith("/") else "/")
    rest = address[len(head) :].lstrip("/")
    pattern = re.compile(translated(rest))
    root = base.path.rstrip("/")
    files = [place for place in listed(base) if pattern.fullmatch(place.path[len(root) :].lstrip("/"))]
    if not files:
        raise NoSuchPlace(f"{address}: no file matches")
    return files


def translated(pattern: str) -> str:
    """A regular expression."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)


def listed(folder: Place) -> list[Place]:
    """All files below a folder, by name. Raises NoSuchPlace."""
    root = folder.path.rstrip("/")
    try:
        infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    except OSError as err:
        raise NoSuchPlace(f"{folder.shown}: {err}") from err
    files = [info.path for info in infos if info.type == pafs.FileType.File]
    kept = [path for path in files if not any(part[:1] in "._" for part in path[len(root) :].strip("/").split("/"))]
    return [folder.at(path) for path in sorted(kept)]


def info_of(place: Place) -> Any:
    """pyarrow's FileInfo: type, size, mtime_ns. Raises NoSuchPlace."""
    try:
        return place.filesystem.get_file_info(place.path)
    except OSError as err:
        raise NoSuchPlace(f"{place.shown}: {err}") from err
