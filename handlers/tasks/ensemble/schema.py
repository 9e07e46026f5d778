"""Settings of an ensemble, and what its answers have besides their members' fields."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from marctl_handlers.core.composite import CompositeSettings, Member
from marctl_handlers.core.settings import Count

Combine = Literal["average", "vote", "stack"]


class WeightedMember(Member, frozen=True, forbid_unknown_fields=True, kw_only=True):
    weight: Annotated[float, Meta(gt=0)] | None = None
    """Beside the other members' weights; 1 if left out. Those of a stack are learned."""


class EnsembleSettings(CompositeSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    members: Annotated[tuple[WeightedMember, ...], Meta(min_length=2)]
    combine: Combine = "average"
    """`average`: the weighted mean of the members' probabilities. `vote`: each member's first choice counts with its
    weight. `stack`: a logistic regression on their log-probabilities, which `marctl train` learns."""
    max_request_cost: Count | None = None
    """What one request may cost all members together; their own limits added up if left out. Each member's own limit
    holds in any case."""

    @property
    def max_cost(self) -> int | None:
        return self.max_request_cost


@cache
def combined_of(outcome: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The outcome of an ensemble: one that its members' task would give, who made it, and who could not help."""
    fields: list[tuple[str, Any]] = [("outcome", outcome), ("members", list[str]), ("failed", list[str])]
    return msgspec.defstruct("Combined", fields, array_like=True, frozen=True)


@cache
def answer_of(answer: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A member's answer type with two fields more: the members that the answer is made of, and those that failed."""
    fields: list[tuple[str, Any]] = [("members", list[str]), ("failed", list[str])]
    return msgspec.defstruct(f"Ensemble{answer.__name__}", fields, bases=(answer,), kw_only=True)


def short_names(versions: Sequence[str]) -> list[str]:
    """`1.0` where all members are versions of one model, else `mcqa/1.0`."""
    models = {version.partition("/")[0] for version in versions}
    return [version.partition("/")[2] for version in versions] if len(models) == 1 else list(versions)
