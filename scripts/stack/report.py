"""What the reconciler tells: which revision is in force, what became of each change, and what it does now."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

KEPT_ANSWERS = 200
KEPT_NOTES = 200


class Answer(Struct, frozen=True, omit_defaults=True):
    """What became of a revision. `reason` is for an operator to read."""

    outcome: Literal["in force", "taken back"]
    reason: str = ""
    error: str = ""
    """The failure's class, for a program to read."""


class Condition(Struct, frozen=True, omit_defaults=True):
    """Something that is not as declared, and why; the reconciler goes on trying. `what`: `mcqa 2.0`, `Redis`."""

    what: str
    reason: str
    since: str


class Following(Struct, frozen=True, omit_defaults=True):
    """follow.json: the place that a node follows, and what it saw there last."""

    place: str
    """A file or a URL, with its password."""
    node: str = ""
    digest: str = ""
    """sha256 of the content, empty before the first one."""
    revision: int | None = None
    """The one that the content names."""
    trouble: str = ""
    """Why the content is not made so, empty if nothing keeps it."""
    since: str = ""


class Note(Struct, frozen=True):
    """A line of progress, numbered."""

    number: int
    text: str


class Status(Struct, frozen=True, omit_defaults=True):
    """status.json."""

    observed: int = 0
    """The newest revision that the reconciler has answered."""
    in_force: int = 0
    """The newest revision that was in force as a whole: the one to go back to."""
    answers: dict[str, Answer] = {}
    """By revision, the latest ones."""
    conditions: list[Condition] = []
    notes: list[Note] = []

    def answer(self, revision: int) -> Answer | None:
        """None while it works on it. A revision that another one overtook shares that one's answer."""
        if revision > self.observed:
            return None
        return self.answers.get(str(revision)) or Answer("in force")
