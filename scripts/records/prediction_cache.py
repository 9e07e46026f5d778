"""The operator's view of the prediction cache (handlers/redis/cache.py): its contents, its figures, and purging it."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from typing import Any

import redis
import requests

from marctl.core.errors import UserError
from marctl.core.http import local_session
from marctl.stack.look import Stack
from marctl.stack.redis_server import chunks, connect, shown
from marctl_handlers.redis.cache import PREFIX, generation_keys, key_prefix

METRICS_TIMEOUT_S = 10.0
FIGURE = re.compile(
    r'^handler_cache_(?P<name>\w+?)(_total)?\{model="(?P<model>[^"]*)",version="(?P<version>[^"]*)"\} '
    r"(?P<value>[0-9.eE+-]+)$"
)


class NoRedis(UserError):
    """The stack has no Redis, or it does not answer."""


def open_redis(stack: Stack) -> redis.Redis:
    """A client of the stack's Redis. Raises NoRedis."""
    server = stack.running.redis
    if server is None:
        raise NoRedis("this stack runs without Redis, so nothing is cached")
    client = connect(server.url)
    try:
        client.ping()
    except redis.RedisError as err:
        raise NoRedis(f"Redis does not answer at {shown(server.url)}: {type(err).__name__}") from err
    return client


def purge(client: redis.Redis, model: str, version: str | None) -> int:
    """Forget all answers of a model or of one version; returns how many there were.

    A new generation begins first, so that from then on no earlier answer is served, and none that is being computed
    now; then the answers are deleted.
    """
    of_model, of_version = generation_keys(model, version or "")
    client.set(of_model if version is None else of_version, secrets.token_bytes(16))
    prefix = f"{PREFIX}:{model}:".encode() if version is None else key_prefix(model, version)
    return sum(client.unlink(*keys) for keys in chunks(client, prefix + b"*"))


def stats(client: redis.Redis, stack: Stack) -> dict[str, Any]:
    """Entries by version, the workers' counts, and Redis's memory."""
    entries = Counter(
        (model.decode(), version.decode())
        for keys in chunks(client, f"{PREFIX}:*".encode())
        for _, _, model, version, _ in (key.split(b":", 4) for key in keys)
    )
    counted = worker_counts(stack.running.metrics)
    memory, events = client.info("memory"), client.info("stats")
    return {
        "versions": [
            {"model": model, "version": version, "entries": entries[model, version], **rates(counted, model, version)}
            for model, version in sorted({*entries, *counted})
        ],
        "memory_bytes": memory["used_memory"],
        "memory_limit_bytes": memory["maxmemory"],
        "evicted": events["evicted_keys"],
    }


def worker_counts(metrics: str) -> dict[tuple[str, str], dict[str, int]]:
    """What workers have counted since TorchServe started, by model and version. Raises UserError."""
    try:
        page = local_session().get(f"{metrics}/metrics", timeout=METRICS_TIMEOUT_S).text
    except requests.RequestException as err:
        raise UserError(f"{metrics} did not answer: {type(err).__name__}") from err
    found: dict[tuple[str, str], dict[str, int]] = {}
    for match in map(FIGURE.match, page.splitlines()):
        if match:
            counts = found.setdefault((match["model"], match["version"]), {})
            counts[match["name"]] = round(float(match["value"]))
    return found


def rates(counted: dict[tuple[str, str], dict[str, int]], model: str, version: str) -> dict[str, Any]:
    """`hit_share` is None before the first question. `asking` is False while a worker leaves Redis alone."""
    counts = counted.get((model, version), {})
    hits, misses, stale = (counts.get(name, 0) for name in ("hits", "misses", "stale"))
    total = hits + misses + stale
    return {
        "hits": hits,
        "misses": misses,
        "stale": stale,
        "computed": counts.get("computed", 0),
        "errors": counts.get("errors", 0),
        "hit_share": round(hits / total, 4) if total else None,
        "asking": counts.get("asking", 1) == 1,
    }
