"""Writes the files of a new project, and leaves what is there as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.starter.origin import Origin, origin

FILES = Path(__file__).parent / "files"
EXAMPLE = {
    "model_store/hello/1.0/model.yaml": "model.yaml",
    "model_store/hello/1.0/task.py": "task.py",
}
"""Written only where there is no recipe yet."""
AROUND = {
    ".gitignore": "gitignore",
    "requirements.txt": "requirements.txt",
    ".github/workflows/archives.yml": "github.yml",
    ".gitlab-ci.yml": "gitlab.yml",
}
WHEELS = "wheels"


class Started(Struct, frozen=True):
    """Paths below the folder. `advice`: what the user should do by hand."""

    folder: str
    written: list[str]
    kept: list[str]
    advice: list[str]


def start(folder: Path, source: Origin | None = None) -> Started:
    """Write what is missing of a new project. Raises UserError; what was there stays in any case."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder, which is made if it is missing")
    source = source or origin()
    example = {} if list(folder.glob("model_store/*/*/model.yaml")) else EXAMPLE
    wanted = {**example, **AROUND}
    kept = [name for name in wanted if os.path.lexists(folder / name)]
    written = [name for name in wanted if name not in kept]
    for name in written:
        write_atomically(folder / name, filled((FILES / wanted[name]).read_text(), source))
    advice = list(advised(kept, source))
    if source.wheel and "requirements.txt" in written:
        name = f"{WHEELS}/{source.wheel.name}"
        (kept if os.path.lexists(folder / name) else written).append(name)
        if name in written:
            write_atomically(folder / name, source.wheel.read_bytes())
    return Started(str(folder), written, kept, advice)


def filled(text: str, source: Origin) -> str:
    """The text with this installation's own facts."""
    facts = {
        "{python}": f"{sys.version_info.major}.{sys.version_info.minor}",
        "{source}": f"--find-links {WHEELS}" if source.needs_wheel else "# From a package index.",
        "{requirement}": source.requirement,
    }
    for place, fact in facts.items():
        text = text.replace(place, fact)
    return text


def advised(kept: list[str], source: Origin) -> Iterator[str]:
    """What cannot be done for the user."""
    if ".gitignore" in kept:
        lines = [line for line in (FILES / "gitignore").read_text().splitlines() if line and not line.startswith("#")]
        yield f".gitignore was there already; it should have these lines: {' '.join(lines)}"
    if source.needs_wheel and source.wheel is None and "requirements.txt" not in kept:
        yield f"put the wheel of marctl into {WHEELS}/, where requirements.txt looks for it: {source.how_to_wheel}"
