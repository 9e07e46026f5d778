"""`marctl cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.group import Group
from marctl.cli.output import common, result, table
from marctl.core.words import counted

if TYPE_CHECKING:
    from marctl.stack.look import Stack

TITLES = ["model", "version", "entries", "hits", "misses", "hit share", "stale", "errors"]


@click.group(cls=Group)
def cache() -> None:
    """Show or clear the answers that workers cache in Redis.

    Example: marctl cache stats
    """


@cache.command()
@common
def stats(state: Path) -> None:
    """Entries, hits and misses by version since the start, and Redis's memory.

    Example: marctl cache stats --json
    """
    from marctl.records.prediction_cache import open_redis
    from marctl.records.prediction_cache import stats as figures

    stack = opened(state)
    with open_redis(stack) as client:
        content = figures(client, stack)
    result(content, describe(content))


@cache.command()
@common
@click.argument("model")
@click.argument("version", required=False)
def purge(state: Path, model: str, version: str | None) -> None:
    """Forget the cached answers of a model, or of one version; none of them is served once the command returns.

    Example: marctl cache purge mcqa 1.0
    """
    from marctl.records.prediction_cache import open_redis
    from marctl.records.prediction_cache import purge as forget

    with open_redis(opened(state)) as client:
        count = forget(client, model, version)
    name = f"{model} {version}" if version else model
    result({"model": model, "version": version, "purged": count}, f"{name}: {counted(count, 'answer')} forgotten")


def opened(state: Path) -> Stack:
    from marctl.stack.look import Stack
    from marctl.stack.state import State

    return Stack.open(State(state))


def describe(content: dict[str, Any]) -> str:
    rows = [
        [
            row["model"],
            row["version"],
            str(row["entries"]),
            str(row["hits"]),
            str(row["misses"]),
            "" if row["hit_share"] is None else f"{row['hit_share']:.1%}",
            str(row["stale"]),
            str(row["errors"]) + ("" if row["asking"] else ", Redis left alone"),
        ]
        for row in content["versions"]
    ]
    memory = f"Redis: {content['memory_bytes'] / 2**20:.1f}"
    memory += f" of {content['memory_limit_bytes'] / 2**20:.0f} MiB" if content["memory_limit_bytes"] else " MiB"
    return f"{table([TITLES, *rows])}\n{memory}, {content['evicted']} entries evicted"
