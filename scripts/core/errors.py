"""What the operator's commands can fail with."""

from __future__ import annotations

import re


class UserError(Exception):
    """A failure that the operator can mend; the text says what was expected, what came, where, and the cure."""


class Relayed(UserError):
    """A failure of another process, told here. `name`: its short name there."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def short_name(err: UserError) -> str:
    """`load_failed` for LoadFailed, `failed` for a plain UserError."""
    if isinstance(err, Relayed):
        return err.name
    name = type(err).__name__
    return "failed" if name == "UserError" else re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
