"""`marctl autoscale`: workers by load."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.output import WANTS_JSON, common

if TYPE_CHECKING:
    from marctl.capacity.autoscaler import Outcome


@click.command()
@common
@click.argument("settings", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Tell what it would do, and change nothing.")
@click.option("--once", is_flag=True, help="Look for --every seconds, tell what comes of it for each version, and end.")
@click.option("--every", type=click.FloatRange(min=0.5), help="Seconds between two looks [default: 3, or the file's].")
def autoscale(state: Path, settings: Path | None, dry_run: bool, once: bool, every: float | None) -> None:
    """Add and take away workers so that requests do not wait longer than the objective, until Ctrl-C.

    SETTINGS is a YAML file of bounds and objectives (scripts/capacity/README.md). Without one, every version with
    workers of its own gets 1 to as many as there are cores, for a queue time of 100 ms at the 99th percentile. Each
    line says what was done and why; `marctl history` keeps it. `marctl up --autoscale` does the same beside the stack.

    Example: marctl autoscale --dry-run --once
    """
    import msgspec

    from marctl.capacity.run import scale
    from marctl.capacity.settings import read_settings
    from marctl.stack.state import State
    from marctl.stack.up import Terminated, terminable

    asked = read_settings(settings)
    asked = asked if every is None else msgspec.structs.replace(asked, every_seconds=every)
    with terminable(), suppress(Terminated):
        scale(State(state), asked, show, dry_run=dry_run, once=once)


def show(outcome: Outcome) -> None:
    """One line, at once: it may be read through a pipe."""
    wants_json = click.get_current_context().meta.get(WANTS_JSON)
    click.echo(json.dumps(outcome.content) if wants_json else str(outcome))
    sys.stdout.flush()
