"""`marctl completion`."""

from __future__ import annotations

import click

from marctl.cli.output import json_option, result

SHELLS = {
    "bash": 'eval "$(marctl completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(marctl completion zsh)"  in ~/.zshrc',
    "fish": "marctl completion fish > ~/.config/fish/completions/marctl.fish",
}


@click.command(epilog="\b\n" + "\n".join(f"{shell}: {how}" for shell, how in SHELLS.items()))
@json_option
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and files.

    Example: marctl completion bash
    """
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root()
    known = get_completion_class(shell)
    assert known is not None
    script = known(root.command, {}, "marctl", "_MARCTL_COMPLETE").source()
    result({"shell": shell, "script": script}, script)
