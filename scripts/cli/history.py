"""`marctl history` and `rollback`: every revision of the declared state, and the way back."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from marctl.cli.group import Group
from marctl.cli.output import common, operator, reason_option, result, table

TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])


@click.group(cls=Group, invoke_without_command=True)
@common
@click.option("--at", "when", type=TIME, help="What was declared at that time (UTC), e.g. 2026-03-01T12:00:00.")
@click.pass_context
def history(context: click.Context, state: Path, when: datetime | None) -> None:
    """Show every change of what is served: who made it, when, by which command and why; newest last.

    Example: marctl history --at 2026-03-01T12:00:00
    """
    if context.invoked_subcommand is not None:
        return
    from marctl.stack.state import State

    revisions = State(state).history
    if when is not None:
        show_at(revisions.at(utc(when)))
        return
    rows: list[dict[str, Any]] = [
        {"revision": r.revision, "at": r.at, "actor": r.actor, "command": r.command, "reason": r.reason}
        for r in revisions.revisions()
    ]
    titles = ["revision", "at (UTC)", "by", "command", "reason"]
    lines = [[str(r["revision"]), str(r["at"]).partition(".")[0], r["actor"], r["command"], one_line(r)] for r in rows]
    result({"revisions": rows}, table([titles, *lines]) if rows else "nothing is declared yet")


def one_line(row: dict[str, Any]) -> str:
    return " ".join(str(row["reason"]).split())


def utc(when: datetime) -> datetime:
    from datetime import UTC

    return when if when.tzinfo else when.replace(tzinfo=UTC)


def show_at(found: Any) -> None:
    import msgspec

    from marctl.stack.document import dump

    result(msgspec.to_builtins(found), f"# {found}\n{dump(found.document, found.revision).rstrip()}")


@history.command()
@common
def verify(state: Path) -> None:
    """Whether any line was changed, lost or put in. Exit code 1 if so.

    Example: marctl history verify
    """
    from marctl.core.faults import listed
    from marctl.stack.history import HistoryDamaged
    from marctl.stack.state import State

    revisions = State(state).history
    faults = revisions.verify()
    if faults:
        raise HistoryDamaged(listed(revisions.file, faults))
    newest = revisions.current().revision
    result({"verified": True, "revision": newest}, f"{newest} revisions, each as it was written")


@click.command()
@common
@reason_option
@click.argument("revision", type=click.IntRange(1), required=False)
def rollback(state: Path, reason: str, revision: int | None) -> None:
    """Go back to a former REVISION of what is served; without a number, undo the last change.

    It becomes the newest revision, so that going back can be undone, too.

    Example: marctl rollback 41 --reason "2.0 answers worse"
    """
    from marctl.cli.state import tell
    from marctl.stack.operations import rollback

    tell(rollback(operator(state, reason), revision))
