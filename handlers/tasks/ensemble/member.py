"""One loaded member: it is asked, and whatever fails in it is its own failure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

from marctl_handlers.core.devices import is_lost, smaller
from marctl_handlers.core.errors import HandlerError
from marctl_handlers.core.task import Task

log = logging.getLogger(__name__)
Ask = Callable[[Sequence[int], float], Sequence[Any]]
"""Outcomes of the questions at these places, by a deadline."""
RECENT = 0.2
"""Weight of the last batch in what a member is expected to take."""
MOST_RESERVED = 0.5
"""Of the time that is left, at most this share is kept for the members that come later."""


class LoadedMember:
    """A version among others. `weight` may be learned after the load."""

    def __init__(self, version: str, name: str, weight: float, task: Task[Any, Any]) -> None:
        self.version = version
        self.name = name
        self.weight = weight
        self.task = task
        self.failures = 0
        """Questions that it could not answer."""
        self.seconds = 0.0
        """What a question took it lately."""

    def predict(self, questions: Sequence[Any], shared: MutableMapping[str, Any], deadline: float) -> list[Any]:
        """Outcomes as `ask` gives them. `shared`: features by their key, computed by whoever needs them first."""

        def predicted(places: Sequence[int], until: float) -> Sequence[Any]:
            if len(places) < len(questions):
                return self.task.predict([questions[i] for i in places], until)
            return self.task.predict_from(questions, self._features(questions, shared), until)

        return self.ask(predicted, len(questions), deadline)

    def _features(self, questions: Sequence[Any], shared: MutableMapping[str, Any]) -> Any:
        key = self.task.features_key
        if key is None:
            return self.task.featurize(questions)
        if key not in shared:
            shared[key] = self.task.featurize(questions)
        return shared[key]

    def ask(self, ask: Ask, count: int, deadline: float) -> list[Any]:
        """An outcome per question; None where the deadline came first, an exception where the member failed.

        All at once; if that fails, in smaller parts, so that a question which breaks the member breaks it alone. Raises
        what leaves no member of this process able to compute.
        """
        began = time.monotonic()
        found = list(self._ask(ask, range(count), deadline))
        seconds = (time.monotonic() - began) / max(count, 1)
        self.seconds += (seconds - self.seconds) * (RECENT if self.seconds else 1)
        # A HandlerError tells the client what is wrong with its question.
        failed = [one for one in found if isinstance(one, Exception) and not isinstance(one, HandlerError)]
        self.failures += len(failed) + found.count(None)
        if failed:
            text = "member %s failed on %d of %d questions; the others answer without it"
            log.error(text, self.version, len(failed), count, exc_info=failed[0])
        return found

    def _ask(self, ask: Ask, places: Sequence[int], deadline: float) -> Iterator[Any]:
        try:
            found = ask(places, deadline)
            if len(found) != len(places):
                raise ValueError(f"expected {len(places)} outcomes, got {len(found)}")
        except Exception as err:
            if is_lost(err):
                raise
            if len(places) == 1:
                yield err
                return
            parts = smaller(places, err)
        else:
            yield from found
            return
        for part in parts:
            late = time.monotonic() > deadline
            yield from [None] * len(part) if late else self._ask(ask, part, deadline)


def ask_all(
    members: Sequence[LoadedMember], ask: Callable[[LoadedMember, float], list[Any]], count: int, deadline: float
) -> list[list[Any]]:
    """Every member's outcomes of `count` questions, one member after the other.

    Each has the time that is left but for what the later ones usually take, so that one that hangs costs itself alone.
    Once the deadline is over, those that are left are not asked, unless nobody has answered yet.
    """
    found: list[list[Any]] = []
    for i, member in enumerate(members):
        now = time.monotonic()
        if now > deadline and any(map(is_outcome, (one for row in found for one in row))):
            member.failures += count
            found.append([None] * count)
            continue
        usual = count * sum(later.seconds for later in members[i + 1 :])
        found.append(ask(member, deadline - min(usual, MOST_RESERVED * max(deadline - now, 0))))
    return found


def is_outcome(found: Any) -> bool:
    """Rather than None, for one that came too late, or an error."""
    return found is not None and not isinstance(found, Exception)
