"""`marctl logs`: what the stack's processes say."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.output import WANTS_JSON, common, emit_json

if TYPE_CHECKING:
    from marctl.stack.log_lines import Line

PARTS = ("envoy", "torchserve", "worker", "reconciler", "redis", "autoscaler", "batch")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
AT = "at"
"""The frames of a traceback, each on a line of its own."""


def moment(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """`10m` ago, or a time."""
    if value is None:
        return None
    if match := re.fullmatch(r"(\d+)([smhd])", value):
        return datetime.now(UTC) - timedelta(**{UNITS[match[2]]: int(match[1])})
    try:
        return datetime.fromisoformat(value).astimezone(UTC)  # one without a zone is of this machine's
    except ValueError as err:
        raise click.BadParameter(
            f"{value!r}: expected a span such as 10m or 2h, or a time such as 2026-11-24T22:31"
        ) from err


@click.command()
@common
@click.option("--follow", is_flag=True, help="Show what comes, until Ctrl-C.")
@click.option("--since", callback=moment, metavar="TIME", help="From then on: 10m, 2h, 1d ago, or a time.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Only this part; may be repeated.")
@click.option(
    "-n", "count", type=click.IntRange(0), default=100, show_default=True, help="Last lines, without --since."
)
def logs(state: Path, follow: bool, since: datetime | None, parts: tuple[str, ...], count: int) -> None:
    """Show what Envoy, TorchServe, workers, Redis and the reconciler say, in the order of time.

    With --json it is one line of JSON each.

    Nothing is told of requests that went well, and nothing that a client sent. What was asked and answered:
    `marctl log`.

    Example: marctl logs --follow --part worker
    """
    from marctl.core.errors import UserError
    from marctl.stack.log_lines import Follower, read_lines
    from marctl.stack.state import State

    folder, wanted = State(state).logs, parts or PARTS
    if not folder.is_dir():
        raise UserError(f"{folder}: no stack has run in this state folder; start one with `marctl up`")
    follower = Follower(folder, wanted)
    found = read_lines(folder, wanted, since)
    for line in found if since else found[max(0, len(found) - count) :]:
        show(line)
    if follow:
        for line in follower.run():
            show(line)


def show(line: Line) -> None:
    if click.get_current_context().meta.get(WANTS_JSON):
        emit_json(line.content)
        return
    moment = line.time.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    fields = "  ".join(f"{name}={value}" for name, value in line.fields.items() if name != AT)
    click.echo("  ".join(filter(None, (moment, f"{line.part:<10}", f"{line.level:<7}", line.message, fields))))
    for frame in line.fields.get(AT, ()):
        click.echo(f"{'':25}{frame}")
