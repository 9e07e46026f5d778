"""How far a folder of files has come in its stream, and what a killed drain was about to add to it.

The files of one step appear one after the other, so `pending` names them before the first does: whoever goes on removes
them and takes the same entries again. `done` moves when all are in place, and only then are the entries trimmed away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from scripts.core.errors import UserError

FILE = "_position.json"
BEGINNING = "0-0"


class Position(msgspec.Struct, frozen=True):
    """`stream` tells one Redis's log from another's, `done` is the last entry that the files hold."""

    stream: str
    done: str = BEGINNING
    pending: list[str] = []


def load(folder: Path) -> Position | None:
    """None for a folder that is new. Raises UserError for files whose position is lost."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Position)
    except FileNotFoundError:
        if next(folder.rglob("*.parquet"), None) is None:
            return None
        raise UserError(
            f"{path} is missing, so records could come twice; put it back, or drain to another folder"
        ) from None
    except msgspec.DecodeError as err:
        raise UserError(f"{path} is damaged ({err}); mend it, or drain to another folder") from err


def save(folder: Path, position: Position) -> None:
    """Readers see the former position or this one, and so does whoever comes after a power cut."""
    replace(folder / FILE, msgspec.json.encode(position))


def replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"_{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the folder's names last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_pending(folder: Path, names: Iterable[str]) -> None:
    """Take away what a step that did not end has put in place."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
