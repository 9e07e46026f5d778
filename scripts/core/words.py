"""Numbers and their nouns."""

from __future__ import annotations


def counted(number: int, name: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {name}{'s' * (number != 1)}"
