"""What a batch job is: everything that its output depends on. Equal jobs give equal outputs, row by row."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from marctl.core.errors import UserError


class JobChanged(UserError):
    """The output folder holds another job's results."""


class Source(Struct, frozen=True):
    """One input file, as it was when the job was planned."""

    place: str
    """Path or URI to open it by."""
    name: str
    """What outputs and errors call it."""
    format: str
    bytes: int
    sha256: str
    rows: int
    columns: dict[str, str]
    """Name to Arrow type, in the file's order; of text files as far as their first rows show."""


class Job(Struct, frozen=True, kw_only=True):
    """Output follows from these alone."""

    model: str
    version: str
    digest: str
    """SHA-256 of the archive file."""
    sources: tuple[Source, ...]
    mapping: dict[str, str] = {}
    """Field of a question to the column that it is read from; others have a column's own name."""
    keys: dict[str, str] = {}
    """Column of the output to the input's column that it carries along."""
    where: str | None = None
    sample: float | None = None
    """Share of the rows, by a hash of file and row number."""
    limit: int | None = None
    """First so many rows of those that `where` and `sample` leave."""
    explain: dict[str, Any] | None = None
    """Options of the explanation that each answer gets; None for none."""
    log: bool = False
    """Whether each row goes to the prediction log, and its output names the record."""
    features: dict[str, str] = {}
    """Entity to the place of its features' history."""
    as_of: str | None = None
    """Column that says when each row's features are to be those that were known."""
    histories: dict[str, str] = {}
    """Entity to the SHA-256 of its history."""
    unit_rows: int

    def differences(self, other: Job) -> list[str]:
        """What a person reads of how another job departs from this one."""
        found = []
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found += source_differences(mine, theirs) if name == "sources" else [told(name, mine, theirs)]
        return found


def told(name: str, before: Any, now: Any) -> str:
    words = {"digest": "archive", "mapping": "--map", "keys": "--key", "unit_rows": "--unit-rows", "as_of": "--as-of"}
    options = ("where", "sample", "limit", "explain", "features", "log")
    label = words.get(name, f"--{name}" if name in options else name)
    if name == "digest":
        return f"{label}: sha256 was {before[:12]}, is {now[:12]}"
    return f"{label}: was {shown(before)}, is {shown(now)}"


def shown(value: Any) -> str:
    return "not given" if value in (None, {}) else msgspec.json.encode(value).decode()


def source_differences(before: tuple[Source, ...], now: tuple[Source, ...]) -> list[str]:
    old, new = {source.name: source for source in before}, {source.name: source for source in now}
    found = [f"input {name}: was not there" for name in new if name not in old]
    found += [f"input {name}: is not there any more" for name in old if name not in new]
    for name in old.keys() & new.keys():
        if old[name].sha256 != new[name].sha256:
            sizes = f"{old[name].bytes:,} bytes then, {new[name].bytes:,} now"
            found.append(f"input {name}: its content changed ({sizes})")
    return found or ["input: the files come in another order, or are named otherwise"]


def refuse_change(folder: str, before: Job, now: Job) -> None:
    """Raise JobChanged unless both are the same job."""
    if faults := before.differences(now):
        lines = [f"{folder} holds the output of another job:", *faults]
        cure = "to discard that output and begin anew, add --restart; to keep it, name another output folder"
        raise JobChanged("\n  ".join([*lines, cure]))
