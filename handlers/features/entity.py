"""Whose features stand in a store: customers, merchants, accounts; the keys that they have there, and their ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f`$]+$")]
LONGEST_ID = 200
"""Characters."""
LARGEST_ID = 2**53
"""JSON readers agree on integers up to here."""
PLAIN_ID = re.compile(r"[^\s:{}\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
"""No colon, which could make one entity's key another one's; no braces, with which a Redis cluster places keys."""
PLAIN_KEY = re.compile(r"[^\s{}\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
STAMP = "@time"
"""Field of a stored entity: when its values were true (handlers/features/stored.py)."""
RESERVED = "marctl:"
"""What keys of the prediction cache and log begin with."""


class Entity(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whose feature it is, where it lives in a store: `customer` of a request names the key `customer:{customer}`."""

    name: Name
    key: Annotated[str, Meta(min_length=1, max_length=200)]
    type: Literal["integer", "text"] = "integer"
    """Of the ids."""

    def key_of(self, entity_id: int | str) -> str:
        """The Redis key of one entity, whose id has no fault."""
        return self.key.replace(f"{{{self.name}}}", str(entity_id))

    def faults(self) -> Iterator[str]:
        """What the types alone cannot refuse."""
        braced = f"{{{self.name}}}"
        before, place, after = self.key.partition(braced)
        example = f", as in {self.name}:{braced}"
        if not place or not PLAIN_KEY.fullmatch(before + after):
            yield f"entity.key: expected {braced} once, and no other brace or space{example}"
        elif not before or before.startswith(RESERVED):
            yield f"entity.key: expected to begin with a word of its own{example}"

    def id_fault(self, entity_id: Any) -> str | None:
        """Why this cannot be an entity's id; None if it can."""
        if self.type == "integer":
            if isinstance(entity_id, bool) or not isinstance(entity_id, int):
                return f"expected an integer, got {told_id(entity_id)}"
            return None if abs(entity_id) <= LARGEST_ID else f"expected an integer of at most {LARGEST_ID:,}"
        if not isinstance(entity_id, str):
            return f"expected text, got {told_id(entity_id)}"
        if len(entity_id) > LONGEST_ID:
            return f"expected at most {LONGEST_ID} characters, got {len(entity_id):,}"
        if PLAIN_ID.fullmatch(entity_id):
            return None
        return f"expected text without spaces, colons, braces and control characters, got {told_id(entity_id)}"


def told_id(entity_id: Any) -> str:
    """Short, as JSON."""
    if isinstance(entity_id, dict | list):
        return "an object or a list"
    text = entity_id[:41].encode("ascii", "backslashreplace").decode() if isinstance(entity_id, str) else entity_id
    shown = msgspec.json.encode(text).decode()
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def request_faults(known: Mapping[str, Entity], named: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every fault of the entities that a request names, each with the name it is at."""
    found = []
    for name, entity_id in named.items():
        if name not in known:
            found.append((name, f"no such entity; there is {', '.join(known)}" if known else "no feature is stored"))
        elif fault := known[name].id_fault(entity_id):
            found.append((name, fault))
    return found
