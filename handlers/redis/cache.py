"""Answers that were computed before, kept in Redis.

An answer is found by the SHA-256 of everything that makes it: the archive and the library and number format that it
runs with, and the question in one canonical form. So versions never share answers, and a changed archive starts anew.

A server batch costs one round trip, whatever its size, and one write that nobody waits for. Equal questions of a batch
are computed once. A worker computes one batch after the other, and on one connection what it wrote is there before it
looks again, so it never computes an answer that it is already computing; several workers of a version may, each once.

A popular answer is computed anew before it expires, by some request that is drawn: the likelier, the nearer the end
and the dearer the answer (XFetch; Vattani, Chierichetti, Lowenstein 2015, doi:10.14778/2757807.2757813). An expired
answer stays for a while, to be served where the model fails.

Keys: `marctl:cache:MODEL:VERSION:` and 32 bytes; what is beside them is told at `generation_keys` and `identity_key`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from marctl_handlers.core.errors import Unavailable
from marctl_handlers.core.messages import FAILED_HEADER, STALE_HEADER, Model
from marctl_handlers.core.pipeline import Item, printable
from marctl_handlers.core.settings import CacheSettings
from marctl_handlers.core.task import Task
from marctl_handlers.redis.link import RedisLink

log = logging.getLogger(__name__)

HIT, MISS, STALE = "hit", "miss", "stale"
PREFIX = "marctl:cache"
FORM = b"2"
"""Of keys and values; another one is never read."""
ANNOUNCE_EVERY_S = 60.0
CONTROL_HEADER = "cache-control"
NO_READ, NO_WRITE = "no-cache", "no-store"
"""Directives of a request, RFC 9111, 5.2.1: compute it anew; and do not keep it either."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a request allows."""

    read: bool = True
    write: bool = True


EVERYTHING = Use()


class Cache:
    """One worker's view of the cache.

    `hits`, `misses` and `stale` count questions since its start, `computed` those that the model was asked, which are
    fewer than the misses where equal ones came together, and `damaged` values that could not be read.
    """

    def __init__(
        self, settings: CacheSettings, task: Task[Any, Any], model: Model, digest: str, link: RedisLink
    ) -> None:
        """`digest`: of the archive. `link`: of the worker's own thread."""
        self.hits = 0
        self.misses = 0
        self.stale = 0
        self.computed = 0
        self.damaged = 0
        self._settings = settings
        self._task = task
        self._model = model
        self._link = link
        self._identity = hashlib.sha256(b"\0".join([FORM, digest.encode(), task.runtime.encode()])).digest()
        self._prefix = key_prefix(model.name, model.version)
        self._generations = generation_keys(model.name, model.version)
        self._announced_at = -math.inf
        entry = msgspec.defstruct(
            "Entry",
            [("generation", bytes), ("expires", float), ("cost_s", float), ("outcome", task.outcome_type)],
            array_like=True,
            frozen=True,
        )
        self._entry: Any = entry
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(entry).decode
        # Struct fields come in the order of their declaration, the keys of mappings sorted. Not JSON, in which NaN, the
        # infinities and nothing at all are the same `null`.
        self._canonical = msgspec.msgpack.Encoder(order="deterministic").encode

    def look_up(self, items: Sequence[Item]) -> Lookup:
        """Settle what is known from before; one round trip, and one more for each request that wants nothing else."""
        asked: list[Item] = []
        for item in items:
            headers = item.exchange.request.headers
            if STALE_HEADER in headers and FAILED_HEADER in headers:
                self._recall(item, headers[FAILED_HEADER])
            else:
                asked.append(item)
        return Lookup(self, asked)

    def _recall(self, item: Item, version: str) -> None:
        """Give the item the last answer that a version of this model gave to the same question, or its error."""
        entry = self._known(item, version)
        if entry is None:
            item.error = Unavailable(
                f"model {self._model.name} {version} failed, and it has no answer to this question from before"
            )
            return
        self.stale += 1
        item.outcome, item.cache, item.version = entry.outcome, STALE, version

    def _known(self, item: Item, version: str) -> Any:
        name = self._model.name
        identity = self._link.ask(("GET", identity_key(name, version)))
        if not identity or identity[0] is None:
            return None
        key = digest_of(identity[0], self._canonical(item.question))
        replies = self._link.ask(("MGET", *generation_keys(name, version), key_prefix(name, version) + key))
        if not replies or replies[0] is None:
            return None
        first, second, value = replies[0]
        return self.entry_in(value, generation_of(first, second), item)

    def totals(self) -> dict[str, int]:
        """For the metrics page."""
        counts = self.counts()
        counts["handler_cache_errors_total"] += self._link.failures + self._link.refused
        return counts | {"handler_cache_asking": int(self.asking)}

    def counts(self) -> dict[str, int]:
        """Of this version alone, where several share a link."""
        return {
            "handler_cache_hits_total": self.hits,
            "handler_cache_misses_total": self.misses,
            "handler_cache_stale_total": self.stale,
            "handler_cache_computed_total": self.computed,
            "handler_cache_errors_total": self.damaged,
        }

    @property
    def asking(self) -> bool:
        """False while Redis is left alone because it did not answer."""
        return self._link.available

    def key_of(self, question: msgspec.Struct) -> bytes:
        return digest_of(self._identity, self._canonical(question))

    def read(self, wanted: Mapping[bytes, Item]) -> tuple[dict[bytes, Any], bytes | None]:
        """What Redis holds of it, checked, and the generation of what may be written; None if Redis is not there."""
        replies = self._link.ask(("MGET", *self._generations, *(self._prefix + key for key in wanted)))
        if not replies or not isinstance(replies[0], list) or len(replies[0]) != len(wanted) + 2:
            return {}, None
        first, second, *values = replies[0]
        generation = generation_of(first, second)
        held = {}
        for (key, item), value in zip(wanted.items(), values, strict=True):
            entry = self.entry_in(value, generation, item)
            if entry is not None:
                held[key] = entry
        return held, generation

    def entry_in(self, value: bytes | None, generation: bytes, item: Item) -> Any:
        """The entry in a value; None if there is none, if it was purged, or if it cannot be this question's."""
        if value is None:
            return None
        try:
            entry = self._decode(value)
            if not self._task.fits(item.question, entry.outcome):
                raise msgspec.ValidationError("it does not answer this question")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.damaged += 1
            return None
        except Exception:
            self.damaged += 1
            log.exception("%s: fits failed, request %s", self._model, printable(item.exchange.request.id))
            return None
        return entry if entry.generation == generation else None

    def is_lasting(self, item: Item) -> bool:
        """Whether the task lets an item's outcome be kept."""
        return self._task.lasts(item.outcome)

    def is_due(self, entry: Any, now: float) -> bool:
        """Whether it has expired, or is drawn to be computed anew already."""
        if entry.expires > now + self._settings.ttl_s:
            return True  # written by a clock that goes wrong
        early_s: float = -entry.cost_s * self._settings.early_refresh * math.log(1.0 - random.random())
        return bool(now + early_s >= entry.expires)

    def write(self, outcomes: Mapping[bytes, Any], cost_s: float, generation: bytes) -> None:
        """Hand outcomes to Redis, without waiting; `cost_s`: what it took to compute them."""
        if not outcomes:
            return
        settings, now = self._settings, time.time()
        commands: list[tuple[bytes | str | int, ...]] = []
        for key, outcome in outcomes.items():
            life_s = settings.ttl_s * (1 - settings.jitter * random.random())
            try:
                value = self._encode(self._entry(generation, now + life_s, cost_s, outcome))
            except Exception as err:  # whatever the task puts into an outcome
                log.error("%s: an outcome cannot be kept in the cache: %s: %s", self._model, type(err).__name__, err)
                continue
            commands.append(("SET", self._prefix + key, value, "PX", round((life_s + settings.stale_s) * 1000) + 1))
        if time.monotonic() - self._announced_at > ANNOUNCE_EVERY_S:
            self._announced_at = time.monotonic()
            commands.append(("SET", identity_key(self._model.name, self._model.version), self._identity))
        self._link.send(*commands)


class Lookup:
    """One batch at the cache: what it knew, and what is to be kept."""

    def __init__(self, cache: Cache, items: Sequence[Item]) -> None:
        self._cache = cache
        self._uses = [use_of(item.exchange.request.header(CONTROL_HEADER)) for item in items]
        self._keys = [cache.key_of(item.question) for item in items]
        self._items = items
        asked = zip(self._keys, items, self._uses, strict=True)
        self._held, self._generation = cache.read({key: item for key, item, use in asked if use.read})
        self._now = time.time()
        self._computed: dict[bytes, Item] = {}
        for key, item, use in zip(self._keys, items, self._uses, strict=True):
            entry = self._held.get(key) if use.read else None
            if entry is not None and not cache.is_due(entry, self._now):
                cache.hits += 1
                item.outcome, item.cache = entry.outcome, HIT
            elif key not in self._computed or sooner(item, self._computed[key]):
                self._computed[key] = item

    @property
    def missing(self) -> list[Item]:
        """Of equal questions one."""
        return list(self._computed.values())

    def keep(self, seconds: float) -> None:
        """Settle what equals a computed item, fall back on old answers where the model failed, and store the rest."""
        cache, computed = self._cache, self._computed
        cache.computed += len(computed)
        results = {key: (item.outcome, item.error) for key, item in computed.items()}
        storable: dict[bytes, Any] = {}
        for key, item, use in zip(self._keys, self._items, self._uses, strict=True):
            if item.cache == HIT:
                continue
            item.outcome, item.error = results[key]
            if item.error is None:
                cache.misses += 1
                item.cache = MISS
                if use.write and cache.is_lasting(item):
                    storable[key] = item.outcome
            else:
                self._fall_back(item, self._held.get(key) if use.read else None)
        if self._generation is not None:
            cache.write(storable, seconds, self._generation)

    def _fall_back(self, item: Item, entry: Any) -> None:
        """An old answer instead of the model's failure, if there is one."""
        if entry is None:
            self._cache.misses += 1
            item.cache = MISS
        elif entry.expires > self._now:  # it was to be refreshed early
            self._cache.hits += 1
            item.outcome, item.error, item.cache = entry.outcome, None, HIT
        else:
            self._cache.stale += 1
            item.outcome, item.error, item.cache = entry.outcome, None, STALE


def sooner(item: Item, other: Item) -> bool:
    """Which of two equal questions is to be computed: that of the smaller request, then that with more time left."""
    one, two = item.exchange, other.exchange
    return (one.cost, -one.deadline) < (two.cost, -two.deadline)


def open_cache(task: Task[Any, Any], model: Model, digest: str, link: RedisLink | None = None) -> Cache | None:
    """The cache of a version; None if it is to have none, its task cannot, or there is no Redis.

    `digest`: of the archive. `link`: one that the versions of a process share; otherwise it has its own.
    """
    settings = task.settings.cache_settings
    if settings is None or not task.cached:
        return None
    link = link or RedisLink.from_environment()
    return None if link is None else Cache(settings, task, model, digest, link)


def use_of(control: str | None) -> Use:
    """What a Cache-Control header allows."""
    if control is None:
        return EVERYTHING
    directives = {directive.strip().lower() for directive in control.split(",")}
    return Use(read=not directives & {NO_READ, NO_WRITE}, write=NO_WRITE not in directives)


def digest_of(identity: bytes, canonical: bytes) -> bytes:
    """`identity` has a fixed length, so that no two pairs make one text."""
    return hashlib.sha256(identity + canonical).digest()


def key_prefix(model: str, version: str) -> bytes:
    """Names hold no colon (scripts/build/recipe.py)."""
    return f"{PREFIX}:{model}:{version}:".encode()


def generation_keys(model: str, version: str) -> tuple[bytes, bytes]:
    """A model's and a version's. A purge gives them another random value, and what was written under the former one is
    not read again, also what a batch under way was about to write."""
    return f"{PREFIX}-generation:{model}".encode(), f"{PREFIX}-generation:{model}:{version}".encode()


def generation_of(model: bytes | None, version: bytes | None) -> bytes:
    return (model or b"") + b"/" + (version or b"")


def identity_key(model: str, version: str) -> str:
    """Key under which a version publishes its cache identity, so that a standby worker can read its answers."""
    return f"{PREFIX}-identity:{model}:{version}"
