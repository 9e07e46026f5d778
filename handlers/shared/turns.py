"""Who is computed when: the requests of one batch, in turns by version, so that nobody's burst starves the others.

TorchServe answers a batch as a whole, so a version with many costly requests would hold up all others in it and behind
it. Each version's first turn comes before anybody's second one, and the fewest requests go first. A turn is as many
requests as fit into its time, by what the version's requests took before. When the batch's time is over, those that had
a turn are refused the rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Place = TypeVar("Place")
Owner = TypeVar("Owner")
UNKNOWN_REQUESTS = 8
"""The first turn of a version of which nothing is known."""
WEIGHT = 0.25
"""Of a turn, in what is known of a version's requests."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[Owner, Place]):
    """A version's requests in this batch."""

    owner: Owner
    places: deque[Place] = field(default_factory=deque)
    request_s: float = 0.0
    """What one takes; 0 if that is not known."""
    turns: int = 0

    def turn(self, turn_s: float) -> list[Place]:
        """The requests of the next turn, one at least."""
        fits = int(turn_s / self.request_s) if self.request_s else UNKNOWN_REQUESTS
        self.turns += 1
        return [self.places.popleft() for _ in range(min(max(fits, 1), len(self.places)))]

    def took(self, seconds: float, requests: int) -> None:
        each = seconds / requests
        self.request_s = each if not self.request_s else self.request_s + WEIGHT * (each - self.request_s)


def in_turns(
    waiting: Iterable[Waiting[Owner, Place]],
    compute: Callable[[Owner, list[Place]], None],
    turn_s: float,
    batch_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Compute until all is done or the time is over; what is left stays in `places`."""
    began = clock()
    turns = deque(sorted((each for each in waiting if each.places), key=lambda each: len(each.places)))
    while turns:
        each = turns.popleft()
        started = clock()
        if each.turns and started - began > batch_s:
            continue
        # A version alone needs no turns: its requests are cheapest together.
        places = each.turn(turn_s if turns else max(batch_s - (started - began), turn_s))
        compute(each.owner, places)
        each.took(clock() - started, len(places))
        if each.places:
            turns.append(each)
