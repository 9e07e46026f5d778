"""`marctl register`, `scale`, `default` and `unregister`: what a running stack serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scripts.cli.output import common, note, result

if TYPE_CHECKING:
    from scripts.build.reader import Archive
    from scripts.stack.management import Served
    from scripts.stack.versions import Stack

Function = TypeVar("Function", bound=Callable[..., Any])


def model_and_version(command: Function) -> Function:
    return click.argument("model")(click.argument("version")(command))


@contextmanager
def changing(state: Path) -> Iterator[Stack]:
    """The running stack, for one command alone; raises NoGateway where its gateway could not follow the change."""
    from scripts.gateway import traffic
    from scripts.stack.state import State
    from scripts.stack.versions import Stack

    home = State(state)
    with home.locked():
        stack = Stack.open(home)
        traffic.refuse_dead_gateway(stack)
        yield stack


@click.command()
@common
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--workers", type=click.IntRange(1), help="Worker processes; the archive's own count if left out.")
@click.option("--default", "make_default", is_flag=True, help="Make it the model's default once it has proved itself.")
@click.option("--force", is_flag=True, help="Replace another file of the same name in the store.")
def register(state: Path, archive: Path, workers: int | None, make_default: bool, force: bool) -> None:
    """Serve one more version, without a gap for the others.

    The archive is copied into the store, its workers are started, and its sample questions are asked. If anything
    fails, it is taken back and everything else goes on as before.

    Example: marctl register mcqa-2.1.mar --default
    """
    from scripts.build.reader import read_archive
    from scripts.gateway import traffic
    from scripts.stack import store, versions
    from scripts.stack.plan import key

    given = read_archive(archive)
    with changing(state) as stack:
        refuse_registered(stack, given)
        with store.put(given, Path(stack.running.store), force=force) as stored:
            served = versions.load(stack, stored, workers, note)
        if make_default:
            stack.management.set_default(stored.name, stored.version)
        traffic.refresh(stack)
        with stack.state.choosing() as choices:
            choices.extra = sorted({*choices.extra, stored.path.name})
            choices.left_out = [name for name in choices.left_out if name != key(stored)]
            if workers is not None:
                choices.workers[key(stored)] = workers
            if make_default:
                choices.defaults[stored.name] = stored.version
    tell(stack, served, f"{served} is served by {served.ready} workers")


def refuse_registered(stack: Stack, archive: Archive) -> None:
    from scripts.core.errors import UserError

    served = stack.served(archive.name, archive.version)
    if served:
        raise UserError(
            f"{served} is registered already, from {served.archive}; give the archive another version, "
            f"or replace it: marctl unregister {served}, then register again"
        )


@click.command()
@common
@model_and_version
@click.argument("workers", type=click.IntRange(0))
def scale(state: Path, model: str, version: str, workers: int) -> None:
    """Bring a version to WORKERS processes, and wait until they are ready.

    0 parks a version: it stays registered, holds no memory and answers 503. The default version needs at least one.

    Example: marctl scale mcqa 2.0 2
    """
    from scripts.gateway import traffic
    from scripts.stack import versions

    with changing(state) as stack:
        if workers == 0:
            traffic.refuse_parking(stack, model, version)
        note(f"{model} {version}: scaling to {workers}")
        served = versions.scale(stack, model, version, workers)
        with stack.state.choosing() as choices:
            choices.workers[f"{model}/{version}"] = workers
        traffic.look(stack)
    tell(stack, served, f"{served} has {served.ready} workers")


@click.command()
@common
@model_and_version
def default(state: Path, model: str, version: str) -> None:
    """Make VERSION the one that answers when a client names none. It must answer its sample questions first.

    Example: marctl default mcqa 2.0
    """
    from scripts.build.reader import read_archive
    from scripts.gateway import traffic
    from scripts.stack import versions

    refuse_explainer(model)
    with changing(state) as stack:
        served = stack.management.describe(model, version)
        versions.promote(stack, read_archive(Path(stack.running.store) / served.archive))
        traffic.refresh(stack)
        if stack.running.gateway and model in traffic.read_policies(stack.state):
            note(f"{model} has a traffic policy, which its requests still follow: marctl route show {model}")
        with stack.state.choosing() as choices:
            choices.defaults[model] = version
    tell(stack, served, f"{served} is the default")


@click.command()
@common
@model_and_version
@click.option("--force", is_flag=True, help="Even if it has a place in the model's traffic; take it out of there.")
def unregister(state: Path, model: str, version: str, force: bool) -> None:
    """Stop serving a version, now and at the next start. Its archive stays in the store.

    Example: marctl unregister mcqa 1.0
    """
    from scripts.gateway import traffic
    from scripts.stack import versions

    refuse_explainer(model)
    with changing(state) as stack:
        served = stack.management.describe(model, version)
        note(f"{served}: unregistering")
        versions.refuse_default(stack, served)
        traffic.release(stack, model, version, "unregister", force=force)
        versions.unregister(stack, model, version)
        traffic.refresh(stack)
        with stack.state.choosing() as choices:
            choices.extra = [name for name in choices.extra if name != served.archive]
            choices.left_out = sorted({*choices.left_out, f"{model}/{version}"})
            choices.workers.pop(f"{model}/{version}", None)
            if choices.defaults.get(model) == version:
                del choices.defaults[model]
    result({"model": model, "version": version, "unregistered": True}, f"{served} is no longer served")


def refuse_explainer(model: str) -> None:
    """Workers that explain follow their model; only their number is the operator's."""
    from scripts.core.errors import UserError
    from scripts.core.explainers import SUFFIX, is_explainer

    if is_explainer(model):
        raise UserError(
            f"{model} is what explains {model.removesuffix(SUFFIX)}, and goes with its versions; "
            f"to stop it alone: marctl scale {model} VERSION 0"
        )


def tell(stack: Stack, served: Served, text: str) -> None:
    """The version as it is now."""
    is_default = stack.is_default(served.model, served.version)
    content = {
        "model": served.model,
        "version": served.version,
        "default": is_default,
        "workers_ready": served.ready,
        "workers_asked": served.asked,
        "archive": served.archive,
    }
    result(content, f"{text}{' (default)' if is_default and 'default' not in text else ''}")
