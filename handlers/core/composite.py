"""A task that is made of other versions, its members, and answers by asking them.

A recipe names them, `members: [{version: MODEL/VERSION}, ...]`, and the archive holds each under `members/`, laid out
like an archive of its own. What such a task takes and answers follows from its members: `of` makes the class.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task

MEMBERS_FOLDER = "members"
VERSION = re.compile(r"[^/.][^/]*/[^/.][^/]*")
EXPECTED = "expected a list of {version: MODEL/VERSION}, two or more"


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a recipe names a member."""

    version: str
    """MODEL/VERSION: a recipe of the same model store."""


class CompositeSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A task adds settings of its own, and a subclass of Member if its members have some."""

    members: Annotated[Sequence[Member], Meta(min_length=2)]


class Composite(Task[msgspec.Struct, msgspec.Struct]):
    """Loads nothing of its own but small files; the types are placeholders until `of` has been told the members."""

    settings_type: ClassVar[type[Settings]] = CompositeSettings
    hub_class: ClassVar[str | None] = None

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        # Not super(): a class made by `of` may have a member's task among its parents.
        Task.__init__(self, settings, device)

    @classmethod
    @abstractmethod
    def of(cls, members: Sequence[type[Task[Any, Any]]]) -> type[Composite]:
        """The class for members of these tasks. Raises LoadError if they cannot be members together."""

    @abstractmethod
    def join(self, members: Mapping[str, Task[Any, Any] | LoadError]) -> None:
        """Take the loaded members by name, or why one could not be loaded; called once, before `load`.

        Raises LoadError if those that were loaded do not fit together, or are too few.
        """

    @classmethod
    def learn(
        cls, settings: Any, members: Sequence[Sequence[Sequence[float]]], labels: Sequence[int]
    ) -> Mapping[str, Any]:
        """Content, as JSON, of the `files` that `load` reads beside the members, by name.

        members: each one's probabilities of labelled rows, in the order of the recipe; labels: the places of the true
        ones. Raises ValueError if there is nothing to learn, or too few rows.
        """
        raise ValueError("its recipe leaves nothing to learn")


def member_names(section: Any) -> list[str]:
    """The versions that a `handler` section, or a recipe, names as members. Raises LoadError."""
    members = section.get("members") if isinstance(section, Mapping) else None
    if not isinstance(members, Sequence) or len(members) < 2 or isinstance(members, str):
        raise LoadError(f"members: {EXPECTED}, got {members!r}")
    names = [member.get("version") if isinstance(member, Mapping) else None for member in members]
    for i, name in enumerate(names):
        if not isinstance(name, str) or not VERSION.fullmatch(name):
            raise LoadError(f"members[{i}].version: expected MODEL/VERSION, got {name!r}")
        if name in names[:i]:
            raise LoadError(f"members[{i}].version: {name} is a member already; give it a larger weight instead")
    return [str(name) for name in names]
