"""Online features: what Redis knows of the entities that requests name.

A batch costs one round trip, whatever its size: an HMGET for each entity, the same one of several requests once. The
form of keys and values is told in handlers/features/stored.py; `HGETALL customer:123` shows what a model is given.

A value that is absent, too old or of a wrong type is left out, and the specification says what stands in for it; so
is all of it while Redis does not answer (handlers/redis/link.py). Only a request that needs a value for which nothing
can stand in gets an error.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from marctl_handlers.core.errors import HandlerError, Invalid, Unavailable
from marctl_handlers.core.task import Row, Task
from marctl_handlers.features.entity import Entity
from marctl_handlers.features.specification import Specification
from marctl_handlers.features.stored import State, StoredForm
from marctl_handlers.redis.link import FEATURES_URL_VARIABLE, URL_VARIABLE, RedisLink

log = logging.getLogger(__name__)

REPLY_TIMEOUT_S = 0.05
"""Longer than the cache's, because an answer with stand-ins is a worse one; a Redis that hangs delays one batch."""
START_S = 1.0
"""A worker that starts waits so long for its connection."""
AT_ONCE = 128
"""Entities in one round trip, whose replies come well within the time limit."""
LEFT_OUT = (State.MISSING, State.STALE, State.INVALID)
Asked = tuple[Row, Mapping[str, int | str]]


class Store:
    """One worker's view of the store. It counts since its start: entities looked up, those of them for which Redis did
    not answer, and values that were missing, too old or invalid."""

    def __init__(self, specification: Specification, link: RedisLink) -> None:
        """`link`: of the worker's own thread."""
        self.lookups = self.unanswered = 0
        self._counts = dict.fromkeys(State, 0)
        self._link = link
        self._kinds = {name: Kind(specification, entity) for name, entity in specification.entities.items()}

    def complete(self, asked: Sequence[Asked]) -> list[Row | HandlerError]:
        """Of each request's own features and its entities, all of its features; a `null` of a request counts as absent.

        Entities have no faults (handlers/features/entity.py).
        """
        named = [[self._kinds[name].place(i) for name, i in entities.items()] for _, entities in asked]
        stored = self._fetch(list(dict.fromkeys(place for row in named for place in row)))
        return [completed(sent, row, stored) for (sent, _), row in zip(asked, named, strict=True)]

    def totals(self) -> dict[str, int]:
        """For the metrics page."""
        return {
            **{f"handler_features_{state.value}_total": self._counts[state] for state in LEFT_OUT},
            "handler_features_lookups_total": self.lookups,
            "handler_features_unanswered_total": self.unanswered,
            "handler_features_asking": int(self._link.available),
        }

    def _fetch(self, places: Sequence[Place]) -> dict[Place, Row]:
        """The features that stand at each place; one is left out where Redis did not answer."""
        self.lookups += len(places)
        found: dict[Place, Row] = {}
        now = time.time()
        for start in range(0, len(places), AT_ONCE):
            part = places[start : start + AT_ONCE]
            replies = self._link.ask_packed(b"".join([kind.command(key) for kind, key in part]), len(part))
            for place, texts in zip(part, replies or (), strict=False):
                if isinstance(texts, list):
                    found[place] = self._fresh(place[0], texts, now)
        self.unanswered += len(places) - len(found)
        return found

    def _fresh(self, kind: Kind, texts: Sequence[bytes | None], now: float) -> Row:
        values = kind.form.fresh(texts, now)
        if len(values) < len(kind.form.features):
            for state in kind.form.states(texts, values):
                self._counts[state] += 1
        return values


class Kind:
    """One entity of a specification: its keys, and what stands there."""

    def __init__(self, specification: Specification, entity: Entity) -> None:
        features = specification.stored(entity.name)
        self.entity = entity
        self.form = StoredForm(features)
        self.required = [feature.name for feature in features if feature.missing_rule == "refuse"]
        fields = [field.encode("utf-8", "surrogatepass") for field in self.form.fields]
        self._head = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2)
        self._tail = b"".join(b"$%d\r\n%s\r\n" % (len(field), field) for field in fields)

    def place(self, entity_id: int | str) -> Place:
        """Two entities, such as a sender and a receiver, may have one key, where each has features of its own."""
        return self, self.entity.key_of(entity_id).encode()

    def command(self, key: bytes) -> bytes:
        """HMGET of the features' fields, as Redis's protocol has it."""
        return b"%s$%d\r\n%s\r\n%s" % (self._head, len(key), key, self._tail)


Place = tuple[Kind, bytes]
"""An entity and its key."""


def completed(sent: Row, places: Sequence[Place], stored: Mapping[Place, Row]) -> Row | HandlerError:
    """A request's own features over those of the entities that it names."""
    row: dict[str, Any] = {}
    for place in places:
        row |= stored.get(place, {})
    row |= sent if None not in sent.values() else given(sent)
    for kind, key in places:
        for name in kind.required:
            if name not in row:
                return lacking(key.decode(), name, answered=(kind, key) in stored)
    return row


def given(sent: Row) -> Row:
    return {name: value for name, value in sent.items() if value is not None}


def lacking(key: str, name: str, *, answered: bool) -> HandlerError:
    """Nothing stands in for this feature."""
    place = f"send it with the request - at `$.features.{name}`"
    if not answered:
        return Unavailable(f"the feature store does not answer, and nothing stands in for {name}; {place}")
    return Invalid(f"{key} has no usable {name} in the feature store; {place}")


def features_link() -> RedisLink | None:
    """To the Redis that holds features; None without one."""
    variable = FEATURES_URL_VARIABLE if os.environ.get(FEATURES_URL_VARIABLE) else URL_VARIABLE
    return RedisLink.from_environment(REPLY_TIMEOUT_S, variable)


def open_features(task: Task[Any, Any], link: RedisLink | None = None) -> Store | None:
    """The store of a version; None if its task has no stored features, or there is no Redis.

    `link`: one that the versions of a process share; otherwise it has its own.
    """
    specification = task.stored_features
    if specification is None or not specification.entities:
        return None
    link = link or features_link()
    if link is None:
        return None
    link.wait_available(START_S)
    return Store(specification, link)
