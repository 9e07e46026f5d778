"""What the operator's commands can fail with."""

from __future__ import annotations


class UserError(Exception):
    """A failure that the operator can mend; the text says what was expected, what came, where, and the cure."""
