"""What an examination says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from marctl.core.errors import UserError


@dataclass(frozen=True)
class Finding:
    """`state`: `error` if nothing can be built or served, `warning` if something works less well."""

    name: str
    state: Literal["ok", "warning", "error"]
    found: str
    cure: str = ""


def failed(name: str, err: UserError, state: Literal["warning", "error"] = "error") -> Finding:
    """Of a failure whose text ends with its cure, after a semicolon."""
    found, _, cure = str(err).rpartition("; ")
    return Finding(name, state, found or cure, cure if found else "")
