"""Groups of commands, which list each command with a whole sentence and understand the words of other tools."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

SYNONYMS = {
    "deploy": "register",
    "evaluate": "eval",
    "info": "inspect",
    "list": "status",
    "ls": "status",
    "new": "init",
    "predict": "ask",
    "ps": "status",
    "remove": "unregister",
    "rm": "unregister",
    "run": "up",
    "serve": "up",
    "start": "up",
    "stop": "down",
    "traffic": "route",
    "undo": "rollback",
}
"""What other tools call it, and what it is called here."""


class Group(click.Group):
    """Lists its commands by section, each with the whole first sentence of its help."""

    def sections(self) -> Mapping[str, list[str]]:
        """Title to the names of the commands below it."""
        return {"Commands": list(self.commands)}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for names in self.sections().values() for name in names)
        for title, names in self.sections().items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name.ljust(width), sentence(command)) for name, command in found if command is not None]
            with formatter.section(title):
                formatter.write_dl(rows)


class LazyGroup(Group):
    """A group whose commands are imported when they are needed.

    `places`: section to command to `module:function`, in the order of the help.
    """

    def __init__(self, *args: object, places: Mapping[str, Mapping[str, str]], **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]  # click's own arguments, handed on
        self.places = places

    def sections(self) -> Mapping[str, list[str]]:
        return {title: list(commands) for title, commands in self.places.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in self.places.values() for name in commands]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for commands in self.places.values():
            if name in commands:
                module, _, function = commands[name].partition(":")
                command = getattr(importlib.import_module(module), function)
                assert isinstance(command, click.Command)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as err:
            raise self.no_such(ctx, err.command_name) from None

    def no_such(self, ctx: click.Context, name: str) -> click.exceptions.NoSuchCommand:
        """The refusal of a word, with the command that was meant."""
        known = self.list_commands(ctx)
        if (meant := SYNONYMS.get(name.lower())) in known:
            return click.exceptions.NoSuchCommand(name, f"No such command {name!r}. Did you mean {meant!r}?", ctx=ctx)
        return click.exceptions.NoSuchCommand(name, possibilities=known, ctx=ctx)


def sentence(command: click.Command) -> str:
    """What it does, in one sentence."""
    return command.get_short_help_str(limit=1000)
