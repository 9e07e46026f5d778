"""A file that somebody else changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]


class Watched:
    """Tells of a change once the files have been left alone: one that is written in place is half written at first."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._told: Stamp = ()
        self._seen: Stamp = ()

    def changed(self) -> bool:
        """Whether they differ from what was told last, and not from the look before; true once at the beginning."""
        before, self._seen = self._seen, self._look()
        if self._seen != before or self._seen == self._told:
            return False
        self._told = self._seen
        return True

    def _look(self) -> Stamp:
        """Empty while one of them is not there."""
        try:
            found = [path.stat() for path in self.paths]
        except OSError:
            return ()
        return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)
