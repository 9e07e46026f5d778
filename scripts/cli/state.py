"""`marctl state`: the document that says what is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.group import Group
from marctl.cli.output import common, json_option, note, operator, reason_option, result, store_option

if TYPE_CHECKING:
    from marctl.stack.document import Declared
    from marctl.stack.operations import Change

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group)
def state() -> None:
    """Show and change the declared state, the document of all that is served.

    Example: marctl state show
    """


@state.command()
@common
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the document instead.")
@click.option(
    "--from", "place", metavar="PLACE", help="The document that nodes follow, at a YAML file or redis:// URL."
)
def show(state: Path, schema: bool, place: str | None) -> None:
    """The declared state as YAML, in the form that `state apply` reads.

    Example: marctl state show > state.yaml
    """
    import json

    import msgspec

    from marctl.stack import document
    from marctl.stack.state import State

    if schema:
        found = document.schema()
        result(found, json.dumps(found, indent=2))
        return
    if place is not None:
        from marctl.stack.place import place_of, read_content

        source = place_of(place)
        there = read_content(source.read(), source.name)
        text = document.dump(there.document, there.revision or 0)
        result(msgspec.to_builtins(there), text.rstrip())
        return
    now = State(state).history.current()
    content = msgspec.to_builtins(document.Declared(now.revision, now.document.models))
    result(content, document.dump(now.document, now.revision).rstrip())


@state.command()
@json_option
@store_option
@click.option("--onto", type=FILE, help="A document to add to; what it says of traffic and defaults stays.")
def draft(store: Path, onto: Path | None) -> None:
    """The document that a store's archives would make, as YAML: where to begin for nodes that follow one.

    A new model's highest version is its default; a further version of a known one gets no traffic yet.

    Example: marctl state draft --store model_store/archives > state.yaml
    """
    import msgspec

    from marctl.stack import document
    from marctl.stack.plan import drafted

    found = drafted(read(onto).document if onto else document.Document(), store, note)
    result(msgspec.to_builtins(document.Declared.of(found)), document.dump(found).rstrip())


@state.command()
@common
@reason_option
@click.option("--to", "place", metavar="PLACE", help="Write it to the YAML file or redis:// URL that nodes follow.")
@click.argument("file", type=FILE)
def apply(state: Path, reason: str, place: str | None, file: Path) -> None:
    """Declare what a YAML FILE says, as a whole. If it names a revision, only if that is still the newest one.

    With --to, it is checked and written to PLACE with the next revision there; `marctl status` of each node that
    follows tells what becomes of it.

    Example: marctl state apply state.yaml --reason "from the repository"
    """
    from marctl.stack.operations import apply
    from marctl.stack.place import place_of, publish

    if place is not None:
        target, declared = place_of(place), read(file)
        number = publish(target, declared)
        result({"place": target.name, "revision": number}, f"revision {number} is written to {target.name}")
        return
    tell(apply(operator(state, reason), read(file)))


@state.command()
@common
@reason_option
def edit(state: Path, reason: str) -> None:
    """Open the declared state in $EDITOR, and declare it when it is saved.

    Example: marctl state edit --reason "more workers for the evening"
    """
    from marctl.stack import document
    from marctl.stack.follow import refuse_following
    from marctl.stack.operations import apply
    from marctl.stack.state import State

    refuse_following(State(state))
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

    from marctl.stack.document import dump
    from marctl.stack.state import State

    now = State(state).history.current()
    wanted = read(file)
    before = dump(now.document, now.revision).splitlines()
    after = dump(wanted.document, now.revision).splitlines()
    lines = list(difflib.unified_diff(before, after, f"revision {now.revision}", str(file), lineterm=""))
    result({"revision": now.revision, "same": not lines, "diff": lines}, "\n".join(lines) or "no difference")


def read(file: Path) -> Declared:
    """Raises DocumentInvalid."""
    from marctl.stack.document import DocumentInvalid, parse

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DocumentInvalid(f"{file}: cannot be read: {err}") from err
    return parse(text, file)


def tell(change: Change) -> None:
    number = change.revision.revision
    words = "in force" if change.followed else "declared; no stack runs"
    result({"revision": number, "in_force": change.followed}, f"revision {number} is {words}")
