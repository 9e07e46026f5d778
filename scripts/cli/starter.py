"""`marctl init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.output import FOLDER, json_option, result

if TYPE_CHECKING:
    from marctl.starter.starter import Started

CURL = """curl -s http://127.0.0.1:8000/predictions/hello -H 'Content-Type: application/json' -d '{"name": "Ada"}'"""


@click.command()
@json_option
@click.argument("folder", type=FOLDER, default=Path(), metavar="[DIR]")
def init(folder: Path) -> None:
    """Begin a project: a recipe to edit, .gitignore, requirements.txt, and CI for GitHub and GitLab.

    What is there already stays as it is. Where there are recipes, no example is written.

    Example: marctl init my-models
    """
    import msgspec

    from marctl.starter.starter import start

    started = start(folder)
    result(msgspec.to_builtins(started), "\n".join(lines(started)))


def lines(started: Started) -> list[str]:
    """What was done and what comes next, for people."""
    done = [*(f"wrote  {name}" for name in started.written), *(f"kept   {name}" for name in started.kept)]
    steps = ["marctl build", "marctl up"]
    if started.folder != ".":
        steps.insert(0, f"cd {started.folder}")
    if any(name.endswith("task.py") for name in started.written):
        steps.append(CURL)
    steps.append("marctl build --from ./my_model --name my-model --version 1.0   # a model that save_pretrained wrote")
    cure = ["marctl doctor   # if something does not start"]
    return [*done, *(f"note:  {each}" for each in started.advice), "next:", *(f"  {step}" for step in steps + cure)]
