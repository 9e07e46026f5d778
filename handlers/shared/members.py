"""Which versions a shared worker may load: those in a file that the stack keeps, and no others.

A request names a model and a version. Where its archive lies is the file's to say, never the request's.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from marctl_handlers.core.messages import Model
from marctl_handlers.tasks import OWN_TASK

log = logging.getLogger(__name__)
MEMBERS_FILE = "members.json"
"""In the folder of the worker's own archive."""


class Member(msgspec.Struct, frozen=True):
    """A version of the list."""

    model: str
    version: str
    archive: str
    """SHA-256 of its `.mar` file, in hex."""
    folder: str
    """Where that is unpacked."""
    task: str = ""
    """As its metadata names it, so that a worker can import what it needs before the first request."""

    @property
    def names(self) -> Model:
        return Model(self.model, self.version)


class Members:
    """The list, read again when the file changes."""

    def __init__(self, root: Path) -> None:
        self._file = root / MEMBERS_FILE
        self._seen: tuple[int, int] | None = None
        self._members: dict[str, Member] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Look whether the file has changed: a microsecond if it has not. One that cannot be read changes nothing."""
        try:
            found = self._file.stat()
            seen = (found.st_ino, found.st_mtime_ns)
            if seen == self._seen:
                return False
            members = read_members(self._file)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
            log.warning("the list of versions cannot be read (%s); the former one stays in force", err)
            return False
        self._seen = seen
        self._members = {f"{member.model}/{member.version}": member for member in members}
        return True

    def find(self, name: str) -> Member | None:
        """By `model/version`."""
        return self._members.get(name)

    @property
    def archives(self) -> set[str]:
        return {member.archive for member in self._members.values()}

    def one_of_each_task(self) -> list[Member]:
        """Of tasks that come with the package; a user's own needs none, for no other version has it."""
        return list({m.task: m for m in self._members.values() if m.task not in ("", OWN_TASK)}.values())

    @property
    def tasks(self) -> set[str]:
        return {member.task for member in self._members.values() if member.task}


def read_members(file: Path) -> list[Member]:
    """Raises OSError and msgspec.DecodeError."""
    return msgspec.json.decode(file.read_bytes(), type=list[Member])
