"""Reads on in a log file from where it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_BYTES = 256 * 1024
LAST_LINES = 5


@dataclass(frozen=True)
class Position:
    """The end of a log at some moment, to read on from there."""

    path: Path
    size: int

    @classmethod
    def now(cls, path: Path) -> Position:
        return cls(path, path.stat().st_size if path.exists() else 0)

    def lines_since(self) -> list[str]:
        """What was written since, at most the last quarter megabyte; a log begun anew is read from its beginning."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            start = self.size if size >= self.size else 0
            file.seek(max(start, size - END_BYTES))
            return file.read().decode(errors="replace").splitlines()

    def last_words(self) -> str:
        """The end of what was written since, for a message; empty if nothing was."""
        lines = [words(line) for line in self.lines_since()[-LAST_LINES:]]
        return f"; last lines of {self.path}:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def parsed(line: str) -> dict[str, Any] | None:
    """The object of a JSON line; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "message" in content else None


def words(line: str) -> str:
    """What a line says to a person."""
    content = parsed(line)
    return line if content is None else "  ".join(filter(None, (str(content["message"]), content.get("throwable"))))
