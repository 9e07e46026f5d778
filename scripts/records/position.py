"""How far a folder of files has come, in its stream and in spill files, and what a killed drain was about to add to it.

The files of one step appear one after the other, so they are named as pending before the first one does: whoever goes
on removes them and takes the same entries again. The position moves when all are in place, and only then are entries
trimmed away and spill files removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from marctl.core.errors import UserError
from marctl.core.files import write_atomically

FILE = "_position.json"
BEGINNING = "0-0"
WRITERS = 256
"""Worker processes whose sequence numbers are watched for gaps."""


class Count(msgspec.Struct, frozen=True, array_like=True):
    """Of one writer's records: the highest sequence number, and how many there are."""

    highest: int
    seen: int

    @property
    def missing(self) -> int:
        return max(0, self.highest - self.seen)


class Position(msgspec.Struct, frozen=True):
    """`stream` tells one Redis's streams from another's, `done` is the last entry that the files hold."""

    stream: str = ""
    done: str = BEGINNING
    pending: list[str] = []
    """Files of a step from the stream."""
    spill_pending: list[str] = []
    """Files of a step from a spill file."""
    spilled: dict[str, int] = {}
    """Records that were taken from a spill file, by its name."""
    writers: dict[str, Count] = {}
    """The least recent ones first."""
    lost: int = 0
    """Missing records of writers that are not watched any more."""
    drained: int = 0
    rejected: int = 0
    """Since the folder was begun."""

    @property
    def missing(self) -> int:
        """Records that workers made and that never came here. A batch on its way counts until it is here."""
        return self.lost + sum(count.missing for count in self.writers.values())

    def counting(self, numbers: Iterable[tuple[str, int]], rejected: int) -> Position:
        """With records of these writers and sequence numbers added."""
        writers, drained = dict(self.writers), 0
        for writer, sequence in numbers:
            drained += 1
            if writer:
                former = writers.pop(writer, Count(0, 0))
                writers[writer] = Count(max(former.highest, sequence), former.seen + 1)
        forgotten = [writers.pop(name) for name in list(writers)[: max(0, len(writers) - WRITERS)]]
        return replace(
            self,
            writers=writers,
            lost=self.lost + sum(count.missing for count in forgotten),
            drained=self.drained + drained,
            rejected=self.rejected + rejected,
        )


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


def peek(folder: Path) -> Position:
    """For readers, who can do without. Raises UserError for a damaged one."""
    return load(folder) or Position() if (folder / FILE).exists() else Position()


def save(folder: Path, position: Position) -> None:
    """Readers see the former position or this one, and so does whoever comes after a power cut. Raises WriteFailed."""
    write_atomically(folder / FILE, msgspec.json.encode(position))


def resume_stream(folder: Path, stream: str) -> Position:
    """Where to go on with a stream; what a killed step from it has left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    here = load(folder) or Position(stream)
    if here.stream != stream:
        # What was pending can't be taken again from another Redis, so its files stay.
        return replace(here, stream=stream, done=BEGINNING, pending=[])
    remove_files(folder, here.pending)
    return here


def resume_spill(folder: Path) -> Position:
    """Where to go on with spill files; what a killed step from one has left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    here = load(folder) or Position()
    remove_files(folder, here.spill_pending)
    return here


def remove_files(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
