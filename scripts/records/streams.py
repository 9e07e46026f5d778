"""Queries to the Redis that the workers write to, with typed results."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from marctl.core.errors import UserError
from marctl.records.declarations import Declarations
from marctl.records.kinds import Entry, Kind, next_id
from marctl.stack import redis_server
from marctl.stack.state import State
from marctl_handlers.redis.log import IDENTITY

Redis = redis.Redis
StreamEntry = tuple[str, dict[bytes, bytes]]
PAGE, TAIL_PAGE = 5_000, 500
TIMEOUT_S = 30.0
"""For one reply; pages are large."""


def connect(state: State) -> Redis:
    """The Redis of the stack that runs, else the one of REDIS_URL. Raises UserError."""
    running = state.running()
    url = running.redis.url if running and running.redis else os.environ.get(redis_server.URL_VARIABLE)
    if not url:
        raise UserError(
            f"no stack with a Redis runs in {state.folder}, and {redis_server.URL_VARIABLE} names none; "
            "start it with `marctl up`"
        )
    return redis_server.connect(url, TIMEOUT_S)


@contextmanager
def answering() -> Iterator[None]:
    """Within this block, Redis's failures become UserErrors."""
    try:
        yield
    except redis.RedisError as err:
        raise UserError(f"Redis does not answer as it should ({type(err).__name__}: {err})") from err


def between(client: Redis, stream: str, first: str, last: str, count: int) -> list[StreamEntry]:
    """At most `count` entries from `first` to `last`, both included, oldest first; `-` and `+` are the ends."""
    found: Any = client.xrange(stream, min=first, max=last, count=count)
    return [(entry_id.decode(), fields or {}) for entry_id, fields in found]


def newest(client: Redis, stream: str, count: int = 1) -> list[StreamEntry]:
    """The last entries, oldest first."""
    found: Any = client.xrevrange(stream, count=count)
    return [(entry_id.decode(), fields or {}) for entry_id, fields in reversed(found)]


def last_id(client: Redis, stream: str) -> str:
    """Of the last entry that came, also if it was drained since."""
    if not client.exists(stream):
        return "0-0"
    info: Any = client.xinfo_stream(stream)
    return str(info["last-generated-id"].decode())


def newest_records(
    client: Redis, kind: Kind, declarations: Declarations, count: int, model: str | None, version: str | None
) -> list[Entry]:
    """The last records, those of one model or version if it is named, oldest first."""
    found: list[Entry] = []
    last = "+"
    while len(found) < count:
        raw: Any = client.xrevrange(kind.stream, max=last, count=TAIL_PAGE)
        page = [(entry_id.decode(), fields or {}) for entry_id, fields in reversed(raw)]
        entries = kind.decode_all(page, declarations).entries
        found += [entry for entry in reversed(entries) if entry.concerns(model, version)]
        if len(page) < TAIL_PAGE:
            break
        last = f"({page[0][0]}"
    return found[:count][::-1]


def every_entry(client: Redis, kind: Kind, declarations: Declarations) -> Iterator[Entry]:
    """Every record that is in the stream now, oldest first."""
    first = "-"
    while page := between(client, kind.stream, first, "+", PAGE):
        yield from kind.decode_all(page, declarations).entries
        first = next_id(page[-1][0])


def value(client: Redis, key: str) -> bytes | None:
    found: Any = client.get(key)
    return found if isinstance(found, bytes) else None


def identity(client: Redis, *, make: bool = True) -> str:
    """Which streams these are, because entry ids mean nothing in another Redis. Empty where nothing named them yet.

    Workers name them with the first records; `make`: for those of workers that do not.
    """
    found = value(client, IDENTITY)
    if found is None and make:
        client.set(IDENTITY, secrets.token_hex(8), nx=True)
        found = value(client, IDENTITY)
    return (found or b"").decode(errors="replace")


def after(client: Redis, stream: str, entry_id: str, wait_ms: int) -> list[StreamEntry]:
    """The entries after this one; waits for the first, and returns none if it does not come in time."""
    found: Any = client.xread({stream: entry_id}, block=wait_ms, count=PAGE)
    return [(each.decode(), fields or {}) for _, entries in found or [] for each, fields in entries]
