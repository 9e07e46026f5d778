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
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from handlers.core.errors import HandlerError, Unavailable
from handlers.core.settings import CacheSettings
from handlers.core.task import FAILED_HEADER, STALE_HEADER, Asked, Found, Task
from handlers.redis.link import RedisLink

Outcome = TypeVar("Outcome")
Compute = Callable[[Sequence[Asked[Any]]], list[Outcome | HandlerError]]
HIT, MISS, STALE = "hit", "miss", "stale"
PREFIX = "marctl:cache"
FORM = b"1"
"""Of keys and values; another one is never read."""
DIGEST_BYTES = 32
CHECK_BYTES = 16
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


class Cache(Generic[Outcome]):
    """One worker's view of the cache.

    `hits`, `misses` and `stale` count questions since its start, `computed` those that the model was asked, which are
    fewer than the misses where equal ones came together, and `damaged` values.
    """

    def __init__(self, settings: CacheSettings, task: Task[Any, Outcome], digest: str, link: RedisLink) -> None:
        """`digest`: of the archive. `link`: of the worker's own thread."""
        assert task.outcome_type is not None
        self.hits = 0
        self.misses = 0
        self.stale = 0
        self.computed = 0
        self.damaged = 0
        self._settings = settings
        self._task = task
        self._link = link
        self._identity = hashlib.sha256(b"\0".join([FORM, digest.encode(), task.runtime.encode()])).digest()
        self._prefix = key_prefix(task.name, task.version)
        self._generations = generation_keys(task.name, task.version)
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
        # Struct fields come in the order of their declaration, the keys of mappings sorted.
        self._canonical_json = msgspec.json.Encoder(order="deterministic").encode

    def answer(self, asked: Sequence[Asked[Any]], compute: Compute[Outcome]) -> list[Found[Outcome]]:
        """What is asked, in order: from Redis what is known, from `compute` the rest, each different question once."""
        failed = [one.header(FAILED_HEADER) if one.header(STALE_HEADER) else None for one in asked]
        if any(failed):
            return self._answer_apart(asked, failed, compute)
        uses = [use_of(one.header(CONTROL_HEADER)) for one in asked]
        keys = [self._key(one.question) for one in asked]
        held, generation = self._read({key: one for key, one, use in zip(keys, asked, uses, strict=True) if use.read})
        now = time.time()
        fresh = {key: entry.outcome for key, entry in held.items() if not self._is_due(entry, now)}
        missing: dict[bytes, Asked[Any]] = {}
        for key, one, use in zip(keys, asked, uses, strict=True):
            # Of equal questions the one that came alone: those that came with many others may have to wait.
            if not (use.read and key in fresh) and (key not in missing or missing[key].several):
                missing[key] = one
        computed = self._compute(missing, compute, generation, {k for k, u in zip(keys, uses, strict=True) if u.write})
        return [self._found(key, use, fresh, computed, held, now) for key, use in zip(keys, uses, strict=True)]

    def _compute(
        self,
        missing: dict[bytes, Asked[Any]],
        compute: Compute[Outcome],
        generation: bytes | None,
        storable: set[bytes],
    ) -> dict[bytes, Outcome | HandlerError]:
        """Compute what is missing and hand it to Redis."""
        if not missing:
            return {}
        self.computed += len(missing)
        began = time.monotonic()
        computed = dict(zip(missing, compute(list(missing.values())), strict=True))
        if generation is not None:
            kept = {k: o for k, o in computed.items() if k in storable and not isinstance(o, HandlerError)}
            self._write(kept, time.monotonic() - began, generation)
        return computed

    def _found(
        self,
        key: bytes,
        use: Use,
        fresh: dict[bytes, Outcome],
        computed: dict[bytes, Outcome | HandlerError],
        held: dict[bytes, Any],
        now: float,
    ) -> Found[Outcome]:
        if use.read and key in fresh:
            self.hits += 1
            return Found(fresh[key], HIT)
        outcome = computed[key]
        if use.read and key in held and isinstance(outcome, HandlerError):
            if held[key].expires > now:  # it was to be refreshed early
                self.hits += 1
                return Found(held[key].outcome, HIT)
            self.stale += 1
            return Found(held[key].outcome, STALE)
        self.misses += 1
        return Found(outcome, MISS)

    def _answer_apart(
        self,
        asked: Sequence[Asked[Any]],
        failed: Sequence[str | None],
        compute: Compute[Outcome],
    ) -> list[Found[Outcome]]:
        """A batch in which some want nothing but the last known answer of another version."""
        usual = iter(self.answer([one for one, version in zip(asked, failed, strict=True) if not version], compute))
        return [
            self._recall(one, version) if version else next(usual) for one, version in zip(asked, failed, strict=True)
        ]

    def _recall(self, one: Asked[Any], version: str) -> Found[Outcome]:
        """The last answer that a version of this model gave to the same question."""
        name = self._task.name
        missing = Unavailable(f"model {name} {version} failed, and it has no answer to this question from before")
        known = self._link.ask(("GET", identity_key(name, version)))
        if not known or known[0] is None:
            return Found(missing)
        # That version may tell forms of Unicode apart that this one does not.
        key = digest_of(known[0], self._canonical_json(one.question))
        generations = generation_keys(name, version)
        replies = self._link.ask(("MGET", *generations, key_prefix(name, version) + key))
        if not replies or replies[0] is None:
            return Found(missing)
        first, second, value = replies[0]
        entry = self._checked(key, value, generation_of(first, second), one.question)
        if entry is None:
            return Found(missing)
        self.stale += 1
        return Found(entry.outcome, STALE, version)

    def totals(self) -> dict[str, int]:
        """For the metrics page."""
        return {
            "handler_cache_hits_total": self.hits,
            "handler_cache_misses_total": self.misses,
            "handler_cache_stale_total": self.stale,
            "handler_cache_computed_total": self.computed,
            "handler_cache_errors_total": self.damaged + self._link.failures + self._link.refused,
            "handler_cache_asking": int(self.asking),
        }

    @property
    def asking(self) -> bool:
        """False while Redis is left alone because it did not answer."""
        return self._link.closed

    def _key(self, question: msgspec.Struct) -> bytes:
        text = self._canonical_json(question)
        if not text.isascii():
            text = self._task.canonical(text.decode()).encode()
        return digest_of(self._identity, text)

    def _read(self, wanted: dict[bytes, Asked[Any]]) -> tuple[dict[bytes, Any], bytes | None]:
        """What Redis holds of it, checked, and the generation of what may be written; None if Redis is not there."""
        replies = self._link.ask(("MGET", *self._generations, *(self._prefix + key for key in wanted)))
        if not replies or not isinstance(replies[0], list) or len(replies[0]) != len(wanted) + 2:
            return {}, None
        first, second, *values = replies[0]
        generation = generation_of(first, second)
        held = {}
        for (key, one), value in zip(wanted.items(), values, strict=True):
            entry = self._checked(key, value, generation, one.question)
            if entry is not None:
                held[key] = entry
        return held, generation

    def _checked(self, key: bytes, value: bytes | None, generation: bytes, question: msgspec.Struct) -> Any:
        """The entry in a value; None if there is none, if it was purged, or if it is not what was written here."""
        if value is None:
            return None
        try:
            if check_of(key, value[CHECK_BYTES:]) != value[:CHECK_BYTES]:
                raise msgspec.ValidationError("its check does not fit")
            entry = self._decode(value[CHECK_BYTES:])
            if not self._task.fits(question, entry.outcome):
                raise msgspec.ValidationError("it does not answer this question")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.damaged += 1
            return None
        return entry if entry.generation == generation else None

    def _is_due(self, entry: Any, now: float) -> bool:
        """Whether it has expired, or is drawn to be computed anew already."""
        if entry.expires > now + self._settings.ttl_s:
            return True  # written by a clock that goes wrong
        early_s: float = -entry.cost_s * self._settings.early_refresh * math.log(1.0 - random.random())
        return bool(now + early_s >= entry.expires)

    def _write(self, outcomes: dict[bytes, Outcome], cost_s: float, generation: bytes) -> None:
        if not outcomes:
            return
        settings, now = self._settings, time.time()
        commands: list[tuple[bytes | str | int, ...]] = []
        for key, outcome in outcomes.items():
            life_s = settings.ttl_s * (1 - settings.jitter * random.random())
            payload = self._encode(self._entry(generation, now + life_s, cost_s, outcome))
            value = check_of(key, payload) + payload
            commands.append(("SET", self._prefix + key, value, "PX", round((life_s + settings.stale_s) * 1000) + 1))
        if time.monotonic() - self._announced_at > ANNOUNCE_EVERY_S:
            self._announced_at = time.monotonic()
            commands.append(("SET", identity_key(self._task.name, self._task.version), self._identity))
        self._link.send(*commands)


def open_cache(task: Task[Any, Any], digest: str) -> Cache[Any] | None:
    """The cache of a worker; None if its version is to have none, its task cannot, or there is no Redis.

    `digest`: of the archive.
    """
    settings = task.settings.cache_settings
    if settings is None or task.outcome_type is None:
        return None
    link = RedisLink.from_environment()
    return None if link is None else Cache(settings, task, digest, link)


def use_of(control: str | None) -> Use:
    """What a Cache-Control header allows."""
    if control is None:
        return EVERYTHING
    directives = {directive.strip().lower() for directive in control.split(",")}
    return Use(read=not directives & {NO_READ, NO_WRITE}, write=NO_WRITE not in directives)


def digest_of(identity: bytes, canonical: bytes) -> bytes:
    """`identity` has a fixed length, so that no two pairs make one text."""
    return hashlib.sha256(identity + canonical).digest()


def check_of(key: bytes, payload: bytes) -> bytes:
    """Tells a value that was damaged, cut, or copied from another key."""
    return hashlib.sha256(key + payload).digest()[:CHECK_BYTES]


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
    """What a version's keys are made with, for the worker of another version that answers when it failed."""
    return f"{PREFIX}-identity:{model}:{version}"
