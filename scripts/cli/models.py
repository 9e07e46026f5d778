"""`marctl register`, `scale`, `default` and `unregister`: which versions are served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from marctl.cli.output import common, operator, reason_option, result, store_option
from marctl.core.words import counted

if TYPE_CHECKING:
    from marctl.stack.operations import Change

Function = TypeVar("Function", bound=Callable[..., Any])


def model_and_version(command: Function) -> Function:
    return click.argument("model")(click.argument("version")(command))


@click.command()
@common
@reason_option
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--workers", type=click.IntRange(1), help="Worker processes; the archive's own count if left out.")
@click.option("--default", "make_default", is_flag=True, help="Make it the model's default once it has proved itself.")
@click.option("--force", is_flag=True, help="Replace another file of the same name in the store.")
@store_option
def register(
    state: Path, reason: str, archive: Path, workers: int | None, make_default: bool, force: bool, store: Path
) -> None:
    """Serve one more version, without a gap for the others.

    The archive is copied into the store (the running stack's own, if one runs), its workers are started, and its sample
    questions are asked. If anything fails, it is taken back and everything else goes on as before.

    Example: marctl register mcqa-2.1.mar --default
    """
    from marctl.stack.operations import register
    from marctl.stack.state import State

    running = State(state).running()
    place = Path(running.store) if running else store
    change, model, version = register(
        operator(state, reason), archive, place, workers=workers, make_default=make_default, force=force
    )
    tell(state, change, model, version, "is served by {ready}")


@click.command()
@common
@reason_option
@model_and_version
@click.argument("workers", type=click.IntRange(0))
def scale(state: Path, reason: str, model: str, version: str, workers: int) -> None:
    """Bring a version to WORKERS processes, and wait until they are ready.

    0 parks a version: it stays registered, holds no memory and answers 503. The default version needs at least one.

    Example: marctl scale mcqa 2.0 2
    """
    from marctl.stack.operations import scale

    change = scale(operator(state, reason), model, version, workers)
    tell(state, change, model, version, "has {ready}")


@click.command()
@common
@reason_option
@model_and_version
def default(state: Path, reason: str, model: str, version: str) -> None:
    """Make VERSION the one that answers when a client names none. It must answer its sample questions first.

    Example: marctl default mcqa 2.0
    """
    from marctl.cli.output import note
    from marctl.stack.operations import make_default

    change = make_default(operator(state, reason), model, version)
    if change.document.models[model].traffic is not None:
        note(f"{model} has a traffic policy, which its requests still follow: marctl route show {model}")
    tell(state, change, model, version, "is the default")


@click.command()
@common
@reason_option
@model_and_version
@click.option("--force", is_flag=True, help="Even if it has a place in the model's traffic; take it out of there.")
def unregister(state: Path, reason: str, model: str, version: str, force: bool) -> None:
    """Stop serving a version, now and at the next start. Its archive stays in the store.

    Example: marctl unregister mcqa 1.0
    """
    from marctl.stack.operations import unregister

    change = unregister(operator(state, reason), model, version, force=force)
    text = f"{model} {version} is no longer " + ("served" if change.followed else "declared; no stack runs")
    content = {"model": model, "version": version, "unregistered": True, "revision": change.revision.revision}
    result(content, text)


def described(asked: object) -> str:
    return "a place in a shared worker" if asked == "shared" else counted(int(str(asked)), "worker")


def tell(state: Path, change: Change, model: str, version: str, text: str) -> None:
    """The version as it is now; as it is declared where no stack runs."""
    from marctl.core.explainers import SUFFIX
    from marctl.stack.look import Stack
    from marctl.stack.state import State

    name = model.removesuffix(SUFFIX)
    declared = change.document.models[name].versions[version]
    is_default = model == name and change.document.models[name].default == version
    asked: int | str | None = declared.workers if model == name else declared.explainers
    ready = 0
    if declared.shared:
        asked, text = "shared", text if "{ready}" not in text else "is served by a shared worker"
    elif change.followed:
        ready = Stack.open(State(state)).management.describe(model, version).ready
    content = {
        "model": model,
        "version": version,
        "default": is_default,
        "workers_ready": ready,
        "workers_asked": asked,
        "archive": declared.file,
        "revision": change.revision.revision,
    }
    words = (
        text.format(ready=counted(ready, "worker"))
        if change.followed
        else f"is declared, with {described(asked)}; no stack runs"
    )
    suffix = " (default)" if is_default and "default" not in words else ""
    result(content, f"{model} {version} {words}{suffix}")
