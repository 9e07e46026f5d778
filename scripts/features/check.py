"""Whether the store would serve what a training file says: skew, feature by feature."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis

from marctl.features.store import texts_of
from marctl.features.table import Row, Table
from marctl_handlers.features.stored import State, StoredForm

AT_ONCE = 500
RELATIVE = 1e-6
"""Numbers that differ by no more than this share of the larger one are the same."""


@dataclass
class Skew:
    """One feature, over all rows of the file. Shares are of these rows."""

    feature: str
    rows: int = 0
    differing: int = 0
    """Rows for which a model would be given something else than the file says, a stand-in among them."""
    missing: int = 0
    """Of these, with a value in the file and none in the store."""
    stale: int = 0
    invalid: int = 0
    extra: int = 0
    """With a value in the store and none in the file."""
    example: str = ""
    """The first row that differs."""
    file_sum: float = field(default=0.0, repr=False)
    store_sum: float = field(default=0.0, repr=False)
    both: int = field(default=0, repr=False)

    def add(self, row: Row, name: str, expected: Any, given: Any, state: State) -> None:
        self.rows += 1
        if expected is not None and given is not None and not isinstance(expected, str):
            self.both += 1
            self.file_sum += float(expected)
            self.store_sum += float(given)
        if same(expected, given):
            return
        self.differing += 1
        self.extra += expected is None
        if given is None:
            self.missing += state is State.MISSING
            self.stale += state is State.STALE
            self.invalid += state is State.INVALID
        if not self.example:
            shown = "nothing" if given is None else given
            self.example = f"row {row.number}, {name} {row.entity_id}: {expected} in the file, {shown} in the store"

    @property
    def share(self) -> float:
        return self.differing / self.rows if self.rows else 0.0

    def told(self) -> dict[str, Any]:
        means = [round(total / self.both, 6) if self.both else None for total in (self.file_sum, self.store_sum)]
        return {
            "feature": self.feature,
            "rows": self.rows,
            "differing": self.differing,
            "share": round(self.share, 6),
            "missing": self.missing,
            "stale": self.stale,
            "invalid": self.invalid,
            "extra": self.extra,
            "file_mean": means[0],
            "store_mean": means[1],
            "example": self.example,
        }


def check(client: redis.Redis, table: Table) -> list[Skew]:
    """Each feature of the table. Raises TableInvalid, redis.RedisError."""
    form, now = StoredForm(table.features), time.time()
    found = [Skew(feature.name) for feature in table.features]
    for rows in blocks(table.rows()):
        texts = texts_of(client, table.entity, form, [row.entity_id for row in rows])
        for row, stored in zip(rows, texts, strict=True):
            fresh = form.fresh(stored, now)
            for skew, expected, state in zip(found, row.values, form.states(stored, fresh), strict=True):
                skew.add(row, table.entity.name, expected, fresh.get(skew.feature), state)
    return found


def blocks(rows: Iterator[Row]) -> Iterator[Sequence[Row]]:
    while block := list(islice(rows, AT_ONCE)):
        yield block


def same(one: Any, other: Any) -> bool:
    """Whether a model is given the same by both."""
    if one is None or other is None or isinstance(one, str):
        return bool(one == other)
    return math.isclose(one, other, rel_tol=RELATIVE)
