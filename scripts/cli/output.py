"""What all commands share: their common options, and where their words go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from marctl.core.json_text import compact

if TYPE_CHECKING:
    from marctl.stack.operations import Operator

PLACE = click.Path(path_type=Path)
"""A file or a folder."""
FOLDER = click.Path(file_okay=False, path_type=Path)
WANTS_JSON = "marctl.json"
Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(command: Function) -> Function:
    """`--json`; remembered for the group, which also reports failures by it."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print the result as one line of JSON.",
    )(command)


def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[WANTS_JSON] = value


def state_option(command: Function) -> Function:
    """`--state`, given to the command as `state`: the folder."""
    return click.option(
        "--state",
        type=FOLDER,
        default=Path(".marctl"),
        show_default=True,
        envvar="MARCTL_STATE",
        show_envvar=True,
        help="Folder of this stack: its settings, logs and choices.",
    )(command)


def recipes_option(command: Function) -> Function:
    """`--recipes`, given to the command as `recipes`: the folder."""
    return click.option(
        "--recipes",
        type=FOLDER,
        default=Path("model_store"),
        show_default=True,
        help="Folder of MODEL/VERSION/model.yaml.",
    )(command)


def store_option(command: Function) -> Function:
    """`--store`, given to the command as `store`: the folder."""
    return click.option(
        "--store",
        type=FOLDER,
        default=Path("model_store/archives"),
        show_default=True,
        envvar="MARCTL_STORE",
        show_envvar=True,
        help="Folder of archives.",
    )(command)


def keys_option(command: Function) -> Function:
    """`--keys`, given to the command as `keys`: the folder, or None."""
    return click.option(
        "--keys",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of the public keys that you trust.",
    )(command)


def reason_option(command: Function) -> Function:
    """`--reason`, given to the command as `reason`."""
    return click.option("--reason", default="", help="Why; kept in the history.")(command)


def operator(state: Path, reason: str) -> Operator:
    """Whoever runs this command, as the history names it."""
    from marctl.stack.operations import Operator
    from marctl.stack.state import State

    context = click.get_current_context()
    path = context.command_path.split(maxsplit=1)
    words = [path[1] if len(path) > 1 else path[0], *(str(word) for word in arguments(context))]
    return Operator(State(state), " ".join(words), note, reason=reason)


def arguments(context: click.Context) -> list[str]:
    """The command's arguments, as they were given; options are left out."""
    found: list[str] = []
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument):
            value = context.params.get(parameter.name or "")
            found += map(str, value) if isinstance(value, tuple) else [] if value is None else [str(value)]
    return found


def common(command: Function) -> Function:
    """Both of them."""
    return state_option(json_option(command))


def note(text: str) -> None:
    """Progress, for people."""
    click.echo(text, err=True)


def result(content: dict[str, Any], text: str) -> None:
    """The command's result: `text` for people, or `content` with --json."""
    if click.get_current_context().meta.get(WANTS_JSON):
        emit_json(content)
    else:
        click.echo(text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, whatever the terminal: rows are for copying and for grep, too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def emit_json(content: dict[str, Any]) -> None:
    click.echo(compact(content))
