"""The feature store as operators' commands reach it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import redis

from marctl.core.errors import UserError
from marctl.stack.redis_server import FEATURES, connect, shown
from marctl.stack.state import State
from marctl_handlers.features.entity import Entity
from marctl_handlers.features.stored import StoredForm

TIMEOUT_S = 30.0
"""For one reply; a server that loads or rewrites its data takes a while."""


class NoStore(UserError):
    """There is no feature store, or it does not answer as it should."""


@contextmanager
def opened(state: State) -> Iterator[redis.Redis]:
    """The store of the stack that runs, else the one that the environment names. Within this block, Redis's failures
    become NoStore."""
    running = state.running()
    urls = [running.features.url if running and running.features else None, *map(os.environ.get, FEATURES.variables)]
    url = next((url for url in urls if url), None)
    if url is None:
        variables = " or ".join(FEATURES.variables)
        raise NoStore(f"no stack with a feature store runs in {state.folder}, and {variables} names none; `marctl up`")
    try:
        with connect(url, TIMEOUT_S) as client:
            client.ping()
            yield client
    except redis.RedisError as err:
        raise NoStore(f"the feature store at {shown(url)}: {type(err).__name__}: {err}") from err


def texts_of(
    client: redis.Redis, entity: Entity, form: StoredForm, ids: Sequence[int | str]
) -> list[list[bytes | None]]:
    """What stands under each id, in one round trip; nothing for a key that is no hash."""
    calls = client.pipeline(transaction=False)
    for entity_id in ids:
        calls.hmget(entity.key_of(entity_id), form.fields)
    nothing: list[bytes | None] = [None] * len(form.fields)
    return [found if isinstance(found, list) else nothing for found in calls.execute(raise_on_error=False)]
