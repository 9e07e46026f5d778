"""`marctl route`: who answers a model's requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scripts.cli.output import common, note, result, table

if TYPE_CHECKING:
    from scripts.gateway.policies import Traffic


@click.group()
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

    from scripts.core.errors import UserError
    from scripts.gateway.policies import dump
    from scripts.gateway.traffic import in_force, require_gateway, served_versions
    from scripts.stack.state import State
    from scripts.stack.versions import Stack

    stack = Stack.open(State(state))
    require_gateway(stack)
    policies = in_force(stack, served_versions(stack))
    if model is not None and model not in policies:
        raise UserError(f"no model {model} is served; there are: {', '.join(sorted(policies)) or 'none'}")
    shown = {name: policies[name] for name in sorted(policies) if model in (None, name)}
    result(msgspec.to_builtins(shown), dump(shown).rstrip())


@route.command("set")
@common
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def set_(state: Path, file: Path) -> None:
    """Take traffic policies from a YAML FILE; models that it does not name keep theirs.

    Example: marctl route set traffic.yaml
    """
    from scripts.gateway.policies import parse, read
    from scripts.gateway.traffic import require_gateway, served_versions, set_policies
    from scripts.stack.state import State
    from scripts.stack.versions import Stack

    home = State(state)
    with home.locked():
        stack = Stack.open(home)
        require_gateway(stack)
        policies = parse(read(file), str(file), served_versions(stack))
        set_policies(stack, policies, "route set")
    tell(policies)


@route.command()
@common
@click.argument("model")
@click.argument("weights", nargs=-1)
@click.option("--experiment", help="Salt of the draw; a new one deals all users anew.")
@click.option("--sticky", metavar="HEADER", help="Requests with the same value of this header get the same version.")
@click.option("--default", "to_default", is_flag=True, help="Forget the model's policy: all to its default version.")
def split(
    state: Path, model: str, weights: tuple[str, ...], experiment: str | None, sticky: str | None, to_default: bool
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
    change(state, model, None if to_default else changes, "route split")


@route.command()
@common
@click.argument("model")
@click.argument("percentages", nargs=-1)
@click.option("--off", is_flag=True, help="No copies any more.")
def shadow(state: Path, model: str, percentages: tuple[str, ...], off: bool) -> None:
    """Send versions copies of a percentage of MODEL's requests. Give each as VERSION=NUMBER, e.g. 3.0=10.

    Their answers are thrown away, and no client waits for them. Copies keep the request's x-request-id.

    Example: marctl route shadow mcqa 3.0=10
    """
    if off == bool(percentages):
        raise click.UsageError("give either PERCENTAGES, e.g. 3.0=10, or --off")
    change(state, model, {"shadow": shares(percentages)}, "route shadow")


@route.command()
@common
@click.argument("model")
@click.argument("versions", nargs=-1)
@click.option("--off", is_flag=True, help="Nobody stands in any more.")
def fallback(state: Path, model: str, versions: tuple[str, ...], off: bool) -> None:
    """Let VERSIONS stand in, in this order, when the routed version of MODEL fails or takes too long.

    The last one may be `stale`: the answer that the routed version gave to the same request before, if the cache holds
    one.

    Example: marctl route fallback mcqa 1.0 stale
    """
    if off == bool(versions):
        raise click.UsageError("give either VERSIONS or --off")
    change(state, model, {"fallback": list(versions)}, "route fallback")


@route.command("history")
@common
@click.argument("model", required=False)
def history_(state: Path, model: str | None) -> None:
    """Every change of the traffic, oldest first.

    Example: marctl route history mcqa
    """
    from scripts.gateway.traffic import history
    from scripts.stack.state import State

    steps = history(State(state), model)
    rows = [["at (UTC)", "model", "command", "before", "after"]]
    rows += [
        [s["at"].removesuffix("+00:00"), s["model"], s["command"], brief(s["before"]), brief(s["after"])] for s in steps
    ]
    result({"changes": steps}, table(rows) if steps else "nothing was changed yet")


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


def change(state: Path, model: str, changes: dict[str, Any] | None, command: str) -> None:
    """Replace fields of a model's policy; None forgets the policy."""
    import msgspec

    from scripts.core.errors import UserError
    from scripts.gateway.traffic import forget_policy, in_force, require_gateway, served_versions, set_policies
    from scripts.stack.state import State
    from scripts.stack.versions import Stack

    home = State(state)
    with home.locked():
        stack = Stack.open(home)
        require_gateway(stack)
        served = served_versions(stack)
        if model not in served:
            raise UserError(f"no model {model} is served; there are: {', '.join(sorted(served)) or 'none'}")
        now = in_force(stack, served)[model]
        if changes is None:
            forget_policy(stack, model, command)
        else:
            set_policies(stack, {model: msgspec.structs.replace(now, **changes)}, command)
        policy = in_force(stack, served)[model]
    tell({model: policy})


def tell(policies: dict[str, Traffic]) -> None:
    """What is in force now."""
    import msgspec

    from scripts.gateway.policies import dump

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
