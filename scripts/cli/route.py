"""`marctl route`: who answers a model's requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.group import Group
from marctl.cli.output import common, note, operator, reason_option, result, table

if TYPE_CHECKING:
    from marctl.gateway.policies import Traffic
    from marctl.stack.state import State


@click.group(cls=Group)
def route() -> None:
    """Show and change which versions answer a model's requests.

    Changes are in force when the command returns; no request is dropped.

    Example: marctl route split mcqa 1.0=80 2.0=20
    """


@route.command()
@common
@click.argument("model", required=False)
def show(state: Path, model: str | None) -> None:
    """The traffic policies in force, in the form that `route set` reads.

    Example: marctl route show mcqa > traffic.yaml
    """
    import msgspec

    from marctl.gateway.policies import dump
    from marctl.stack.operations import require_gateway, the_model
    from marctl.stack.state import State

    home = State(state)
    require_gateway(home)
    document = home.history.current().document
    if model is not None:
        the_model(document, model)
    shown = {name: document.models[name].policy for name in sorted(document.models) if model in (None, name)}
    result(msgspec.to_builtins(shown), dump(shown).rstrip())


@route.command("set")
@common
@reason_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def set_(state: Path, reason: str, file: Path) -> None:
    """Apply traffic policies from a YAML FILE; models that it does not name keep theirs.

    Example: marctl route set traffic.yaml
    """
    from marctl.gateway.policies import parse, read
    from marctl.stack.operations import set_traffic
    from marctl.stack.state import State

    document = State(state).history.current().document
    policies = parse(read(file), str(file), {name: list(model.versions) for name, model in document.models.items()})
    set_traffic(operator(state, reason), policies)
    tell(policies)


@route.command()
@common
@reason_option
@click.argument("model")
@click.argument("weights", nargs=-1)
@click.option("--experiment", help="Experiment name; changing it reassigns every user.")
@click.option("--sticky", metavar="HEADER", help="Requests with the same value of this header get the same version.")
@click.option("--default", "to_default", is_flag=True, help="Forget the model's policy: all to its default version.")
def split(
    state: Path,
    reason: str,
    model: str,
    weights: tuple[str, ...],
    experiment: str | None,
    sticky: str | None,
    to_default: bool,
) -> None:
    """Divide MODEL's requests among versions by WEIGHTS. Give each as VERSION=NUMBER, e.g. 2.0=20.

    A user who has the growing newest version keeps it through a ramp: only users of the others move over.

    Example: marctl route split mcqa 1.0=80 2.0=20
    """
    changes: dict[str, Any] = {"experiment": experiment, "sticky": sticky}
    changes = {name: value for name, value in changes.items() if value is not None}
    if to_default and (weights or changes):
        raise click.UsageError("--default goes alone")
    if not (weights or changes or to_default):
        raise click.UsageError("expected WEIGHTS, e.g. 1.0=80 2.0=20, or an option")
    if weights:
        changes["split"] = shares(weights)
    change(state, reason, model, None if to_default else changes)


@route.command()
@common
@reason_option
@click.argument("model")
@click.argument("percentages", nargs=-1)
@click.option("--off", is_flag=True, help="Send no copies.")
def shadow(state: Path, reason: str, model: str, percentages: tuple[str, ...], off: bool) -> None:
    """Send versions copies of a percentage of MODEL's requests. Give each as VERSION=NUMBER, e.g. 3.0=10.

    Their answers are thrown away, and no client waits for them. Copies keep the request's x-request-id.

    Example: marctl route shadow mcqa 3.0=10
    """
    if off == bool(percentages):
        raise click.UsageError("give either PERCENTAGES, e.g. 3.0=10, or --off")
    change(state, reason, model, {"shadow": shares(percentages)})


@route.command()
@common
@reason_option
@click.argument("model")
@click.argument("versions", nargs=-1)
@click.option("--off", is_flag=True, help="Nobody stands in.")
def fallback(state: Path, reason: str, model: str, versions: tuple[str, ...], off: bool) -> None:
    """Let VERSIONS stand in, in this order, when the routed version of MODEL fails or takes too long.

    The last one may be `stale`: the answer that the routed version gave to the same request before, if the cache holds
    one.

    Example: marctl route fallback mcqa 1.0 stale
    """
    if off == bool(versions):
        raise click.UsageError("give either VERSIONS or --off")
    change(state, reason, model, {"fallback": list(versions)})


@route.command("history")
@common
@click.argument("model", required=False)
def history_(state: Path, model: str | None) -> None:
    """Every change of the traffic, oldest first. `marctl history` tells all others, too.

    Example: marctl route history mcqa
    """
    from marctl.stack.state import State

    steps = list(changes_of(State(state), model))
    rows = [["revision", "at (UTC)", "model", "by", "command", "before", "after"]]
    rows += [
        [
            str(s["revision"]),
            s["at"].partition(".")[0],
            s["model"],
            s["actor"],
            s["command"],
            brief(s["before"]),
            brief(s["after"]),
        ]
        for s in steps
    ]
    back = "`marctl rollback REVISION` goes back to all that was declared then: traffic, versions, workers"
    result({"changes": steps}, f"{table(rows)}\n{back}" if steps else "nothing was changed yet")


def changes_of(state: State, model: str | None) -> Iterator[dict[str, Any]]:
    """Each change of a model's policy; None where it had or has none of its own."""
    import msgspec

    before: dict[str, Any] = {}
    for revision in state.history.revisions():
        models = revision.document.models
        after = {name: msgspec.to_builtins(found.traffic) for name, found in models.items()}
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name) and model in (None, name):
                yield {
                    "revision": revision.revision,
                    "at": revision.at,
                    "actor": revision.actor,
                    "command": revision.command,
                    "model": name,
                    "before": before.get(name),
                    "after": after.get(name),
                }
        before = after


def shares(words: tuple[str, ...]) -> dict[str, float]:
    """`2.0=20` to {"2.0": 20.0}."""
    found: dict[str, float] = {}
    for word in words:
        version, _, number = word.rpartition("=")
        try:
            found[version] = float(number)
        except ValueError:
            version = ""
        if not version:
            raise click.UsageError(f"expected VERSION=NUMBER, got {word!r}")
    return found


def change(state: Path, reason: str, model: str, changes: dict[str, Any] | None) -> None:
    """Replace fields of a model's policy; None forgets the policy."""
    from marctl.stack.operations import change_traffic

    done = change_traffic(operator(state, reason), model, changes)
    tell({model: done.document.models[model].policy})


def tell(policies: dict[str, Traffic]) -> None:
    """What is in force now."""
    import msgspec

    from marctl.gateway.policies import dump

    note("in force:")
    result(msgspec.to_builtins(policies), dump(policies).rstrip())


def brief(policy: dict[str, Any] | None) -> str:
    """A policy in a few words."""
    if policy is None:
        return "default"
    parts = [" ".join(f"{version}={weight:g}" for version, weight in policy["split"].items())]
    parts += [f"shadow {' '.join(f'{v}={p:g}' for v, p in policy['shadow'].items())}"] if "shadow" in policy else []
    parts += [f"fallback {' '.join(policy['fallback'])}"] if "fallback" in policy else []
    parts += [f"experiment {policy['experiment']}"] if "experiment" in policy else []
    return ", ".join(parts)
