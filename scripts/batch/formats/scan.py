"""Looks through a file once: its digest, how many rows it has, and where they begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from marctl.batch.places import NoSuchPlace, Place, info_of, place_of

CHUNK_BYTES = 8 << 20
STEP_ROWS = 256
"""Offsets of text files are kept for every so many rows; units are multiples of it."""


@dataclass(frozen=True)
class Scan:
    """What one look through a file found."""

    rows: int
    sha256: str
    columns: dict[str, str]
    """Name to Arrow type; of a text file as far as its first rows show."""
    marks: list[int]
    """Of a text file: where the rows 0, STEP_ROWS, 2 * STEP_ROWS ... begin, in bytes, and where the last one ends."""


class Chunks:
    """A file's content in pieces, hashed on the way."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        with self._place.filesystem.open_input_stream(self._place.path, compression=None) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self._hash.update(chunk)
                yield chunk

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def lines_of(chunks: Iterator[bytes] | Chunks) -> Iterator[bytes]:
    """Lines with their ends, whatever chunks they come in."""
    rest = b""
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def read_bytes(place: Place, start: int, end: int) -> bytes:
    """A part of a file."""
    with place.filesystem.open_input_file(place.path) as file:
        file.seek(start)
        content: bytes = file.read(end - start)
    return content


def first_bytes(place: Place) -> bytes:
    """Whole lines from the beginning, as far as they are looked at to tell types."""
    with place.filesystem.open_input_stream(place.path, compression=None) as stream:
        content: Any = stream.read(1 << 20)
    head, newline, _ = content.rpartition(b"\n")
    whole: bytes = content if len(content) < 1 << 20 or not newline else head + newline
    return whole


def digest_at(text: str) -> str:
    """SHA-256 of a file's content. Raises NoSuchPlace."""
    place = place_of(text)
    if info_of(place).size is None:
        raise NoSuchPlace(f"{place.shown}: no such file")
    chunks = Chunks(place)
    for _ in chunks:
        pass
    return chunks.sha256
