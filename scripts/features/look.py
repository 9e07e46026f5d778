"""One entity as it stands in the store, and as a model would see it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import redis

from marctl.core.errors import UserError
from marctl.features.store import texts_of
from marctl_handlers.features import Feature, Specification
from marctl_handlers.features.entity import Entity
from marctl_handlers.features.stored import State, StoredForm


@dataclass(frozen=True)
class Seen:
    """One feature. `stored` is the text that stands there, None for none; `used` what a model would be given where the
    request brings nothing, None where nothing stands in."""

    feature: str
    stored: str | None
    state: str
    age_s: float | None
    used: Any


def look(client: redis.Redis, specification: Specification, entity: Entity, entity_id: int | str) -> list[Seen]:
    """All stored features of one entity. Raises redis.RedisError."""
    features, now = specification.stored(entity.name), time.time()
    form = StoredForm(features, ages=True)
    (texts,) = texts_of(client, entity, form, [entity_id])
    fresh = form.fresh(texts, now)
    told = zip(features, texts, form.states(texts, fresh), form.ages(texts, now), strict=False)
    return [seen(feature, text, state, age_s, fresh) for feature, text, state, age_s in told]


def seen(feature: Feature, text: bytes | None, state: State, age_s: float | None, fresh: dict[str, Any]) -> Seen:
    stored = None if text is None else text.decode("utf-8", "backslashreplace")
    age_s = None if age_s is None or text is None else round(age_s, 1)
    return Seen(feature.name, stored, state.value, age_s, fresh.get(feature.name, feature.stand_in))


def named(specification: Specification, word: str) -> tuple[Entity, int | str]:
    """`customer=123` as an entity and an id of its type. Raises UserError."""
    name, equals, text = word.partition("=")
    known = specification.entities
    if not equals or name not in known:
        names = " or ".join(f"{name}=ID" for name in known) or "a specification with stored features"
        raise UserError(f"expected {names}, got {word!r}")
    entity = known[name]
    entity_id: int | str = text
    if entity.type == "integer" and text.removeprefix("-").isdecimal() and len(text) < 20:
        entity_id = int(text)
    if fault := entity.id_fault(entity_id):
        raise UserError(f"{name}: {fault}")
    return entity, entity_id
