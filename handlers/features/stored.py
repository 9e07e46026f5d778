"""One entity's features as a Redis hash holds them, in plain text that any writer can produce.

    HSET customer:123 income 1200.5 home owner employed true @time 1763725123

A number is decimal text (`12`, `-0.5`, `1e-3`), a boolean `true` or `false` (or `1`, `0`), a category its name. An
empty or absent field is a missing value. `@time` says when all of the entity's values were true, in seconds since 1970,
UTC; a writer that sets some of them only sets `@time:NAME` of each instead. Of the two the later one counts. They are
needed where a feature has a `freshness_s`. Fields that the specification does not know are other models' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from marctl_handlers.features.entity import STAMP
from marctl_handlers.features.specification import LARGEST, Feature, bounds_of, value_fault

Texts = Sequence[bytes | None]
AHEAD_S = 60.0
"""Clocks of two machines may differ by so much. A stamp further ahead, such as one in milliseconds, says no age."""
ABSENT = -1
BOOLEANS = {b"true": True, b"false": False, b"True": True, b"False": False, b"1": True, b"0": False}


class State(Enum):
    """What became of a stored value."""

    FRESH = "fresh"
    MISSING = "missing"
    STALE = "stale"
    """Older than its limit, or of unknown age where there is one."""
    INVALID = "invalid"
    """Not of the feature's type, or a value that the specification refuses."""


class Reader(NamedTuple):
    """How one feature is read."""

    name: str
    read: Callable[[bytes], Any]
    limit_s: float | None
    stamp_at: int
    """Place of its own stamp, or ABSENT."""


class StoredForm:
    """The stored features of one entity of a specification: which fields to ask for, and what they say."""

    def __init__(self, features: Sequence[Feature], *, ages: bool = False) -> None:
        """`ages`: of all features, also of those that never grow too old."""
        self.features = list(features)
        names = [feature.name for feature in features]
        aged = [feature.name for feature in features if ages or feature.freshness_s is not None]
        self.fields = [*names, *([STAMP] if aged else []), *(f"{STAMP}:{name}" for name in aged)]
        """Of the hash, in the order that `read` takes their values in."""
        place = {field: i for i, field in enumerate(self.fields)}
        self._readers = [
            Reader(f.name, reader_of(f), f.freshness_s, place.get(f"{STAMP}:{f.name}", ABSENT)) for f in features
        ]
        self._common = place.get(STAMP)

    def fresh(self, texts: Texts, now: float) -> dict[str, Any]:
        """The values that a model may be given, by name. `now` is in seconds since 1970."""
        ages: dict[bytes | None, float | None] = {}
        common = None if self._common is None else texts[self._common]
        values = {}
        for (name, read, limit_s, stamp_at), text in zip(self._readers, texts, strict=False):
            value = read(text) if text else None
            if value is None:
                continue
            if limit_s is not None:
                own = texts[stamp_at]
                if own not in ages:
                    ages[own] = later(own, common, now)
                age_s = ages[own]
                if age_s is None or not -AHEAD_S <= age_s <= limit_s:
                    continue
            values[name] = value
        return values

    def states(self, texts: Texts, fresh: Mapping[str, Any]) -> Iterator[State]:
        """What became of each feature, in order; `fresh` is what `fresh` gave."""
        for reader, text in zip(self._readers, texts, strict=False):
            if reader.name in fresh:
                yield State.FRESH
            elif not text:
                yield State.MISSING
            else:
                yield State.INVALID if reader.read(text) is None else State.STALE

    def ages(self, texts: Texts, now: float) -> list[float | None]:
        """In seconds, of each feature in order; None where nothing says it, or there was no need to ask."""
        common = None if self._common is None else texts[self._common]
        stamps = [None if reader.stamp_at == ABSENT else texts[reader.stamp_at] for reader in self._readers]
        return [later(own, common, now) for own in stamps]


def later(own: bytes | None, common: bytes | None, now: float) -> float | None:
    """The age of a value by the later of two stamps; None if neither is a time."""
    ages = [age_s for stamp in (own, common) if stamp and (age_s := age_of(stamp, now)) is not None]
    return min(ages, default=None)


def age_of(stamp: bytes, now: float) -> float | None:
    try:
        age_s = now - float(stamp)
    except ValueError:
        return None
    return age_s if math.isfinite(age_s) else None


def reader_of(feature: Feature) -> Callable[[bytes], Any]:
    """From stored text to a value that the specification takes; None for any other."""
    if feature.type == "boolean":
        return BOOLEANS.get
    if feature.is_category:
        return category_reader(feature)
    low, high = bounds_of(feature) if feature.outside == "refuse" else (-LARGEST, LARGEST)
    whole = feature.type == "integer"

    def read(text: bytes) -> float | None:
        try:
            value = float(text)
        except ValueError:
            return None
        return value if low <= value <= high and (not whole or value.is_integer()) else None

    return read


def category_reader(feature: Feature) -> Callable[[bytes], str | None]:
    known = {name.encode("utf-8", "surrogatepass"): name for name in feature.categories or ()}

    def read(text: bytes) -> str | None:
        try:
            value = known.get(text) or text.decode()
        except ValueError:
            return None
        return None if text not in known and value_fault(feature, value) else value

    return read


def text_of(feature: Feature, value: Any) -> str:
    """A value as it is stored; it is one that the specification takes."""
    if feature.type == "boolean":
        return "true" if value else "false"
    if feature.is_category:
        return str(value)
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
