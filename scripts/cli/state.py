"""`marctl state`: the document that says what is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from scripts.cli.output import common, operator, reason_option, result

if TYPE_CHECKING:
    from scripts.stack.document import Declared
    from scripts.stack.operations import Change

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def state() -> None:
    """Show and change the declared state as a whole.

    Example: marctl state show
    """


@state.command()
@common
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the document instead.")
def show(state: Path, schema: bool) -> None:
    """The declared state as YAML, in the form that `state apply` reads.

    Example: marctl state show > state.yaml
    """
    import json

    import msgspec

    from scripts.stack import document
    from scripts.stack.state import State

    if schema:
        found = document.schema()
        result(found, json.dumps(found, indent=2))
        return
    now = State(state).history.current()
    content = msgspec.to_builtins(document.Declared(now.revision, now.document.models))
    result(content, document.dump(now.document, now.revision).rstrip())


@state.command()
@common
@reason_option
@click.argument("file", type=FILE)
def apply(state: Path, reason: str, file: Path) -> None:
    """Declare what a YAML FILE says, as a whole. If it names a revision, only if that is still the newest one.

    Example: marctl state apply state.yaml --reason "from the repository"
    """
    from scripts.stack.operations import apply

    tell(apply(operator(state, reason), read(file)))


@state.command()
@common
@reason_option
def edit(state: Path, reason: str) -> None:
    """Open the declared state in $EDITOR, and declare it when it is saved.

    Example: marctl state edit --reason "more workers for the evening"
    """
    from scripts.stack import document
    from scripts.stack.operations import apply
    from scripts.stack.state import State

    now = State(state).history.current()
    text = click.edit(document.dump(now.document, now.revision), extension=".yaml")
    if text is None:
        result({"revision": now.revision, "changed": False}, "nothing was saved, nothing is changed")
        return
    tell(apply(operator(state, reason), document.parse(text, "the edited state")))


@state.command()
@common
@click.argument("file", type=FILE)
def diff(state: Path, file: Path) -> None:
    """How a YAML FILE differs from what is declared; nothing is changed.

    Example: marctl state diff state.yaml
    """
    import difflib

    from scripts.stack.document import Document, dump
    from scripts.stack.state import State

    now = State(state).history.current()
    wanted = read(file)
    before = dump(now.document, now.revision).splitlines()
    after = dump(Document(wanted.models), now.revision).splitlines()
    lines = list(difflib.unified_diff(before, after, f"revision {now.revision}", str(file), lineterm=""))
    result({"revision": now.revision, "same": not lines, "diff": lines}, "\n".join(lines) or "no difference")


def read(file: Path) -> Declared:
    """Raises DocumentInvalid."""
    from scripts.stack.document import DocumentInvalid, parse

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DocumentInvalid(f"{file}: cannot be read: {err}") from err
    return parse(text, file)


def tell(change: Change) -> None:
    number = change.revision.revision
    words = "in force" if change.followed else "declared; no stack runs"
    result({"revision": number, "in_force": change.followed}, f"revision {number} is {words}")
