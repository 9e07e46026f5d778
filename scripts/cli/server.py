"""`marctl up`, `down` and `status`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from scripts.cli.output import common, note, recipes_option, result, store_option, table

if TYPE_CHECKING:
    from scripts.stack.plan import Plan
    from scripts.stack.versions import Stack

TITLES = ["model", "version", "default", "workers", "pids", "MiB", "queue", "batch", "archive", "since (UTC)"]
PORT = click.IntRange(0, 65535)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: a service manager, or a terminal that was closed."""


@click.command()
@common
@click.option(
    "--gateway-port", type=PORT, default=8000, show_default=True, help="Where clients ask; 0 for any free port."
)
@click.option(
    "--gateway-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of the gateway's address, limits, API keys and certificate.",
)
@click.option(
    "--upstream", "upstreams", multiple=True, metavar="IP:PORT", help="One more TorchServe behind the gateway."
)
@click.option("--no-gateway", is_flag=True, help="TorchServe alone, without Envoy before it.")
@click.option("--no-redis", is_flag=True, help="No cache, no log; else the Redis of REDIS_URL, or one of its own.")
@click.option("--port", type=PORT, default=8080, show_default=True, help="TorchServe's predictions.")
@click.option("--management-port", type=PORT, default=8081, show_default=True, help="TorchServe's management API.")
@click.option("--metrics-port", type=PORT, default=8082, show_default=True, help="Prometheus metrics.")
@recipes_option
@store_option
@click.option("--workers", type=click.IntRange(1), help="Workers of every version, for this run only.")
@click.option("--detach", is_flag=True, help="Return once everything serves; stop it with `marctl down`.")
def up(
    state: Path,
    gateway_port: int,
    gateway_config: Path | None,
    upstreams: tuple[str, ...],
    no_gateway: bool,
    no_redis: bool,
    port: int,
    management_port: int,
    metrics_port: int,
    recipes: Path,
    store: Path,
    workers: int | None,
    detach: bool,
) -> None:
    """Build, start and check everything, then serve until Ctrl-C.

    All recipes' versions are served, and what was registered by hand; the highest version is the default. Choices made
    with `register`, `scale`, `default` and `unregister` are kept in the state folder and hold for the next start.

    Example: marctl up --port 9080 --detach
    """
    from scripts.stack.metrics_page import MetricsPage, leave_page
    from scripts.stack.state import State
    from scripts.stack.torchserve import socket_prefix, stop
    from scripts.stack.up import Request, bring_up, watch

    home = State(state)
    opened = None if no_gateway else gateway_port
    request = Request(
        recipes, store, port, management_port, metrics_port, workers, opened, gateway_config, upstreams, not no_redis
    )
    with terminable():
        with home.locked():
            stack, plan = bring_up(home, request, note)
        if detach:
            leave_page(home, socket_prefix(Path(stack.running.temp)))
            announce(stack, plan, f"stop it with: marctl down --state {state}")
            return
        try:
            MetricsPage(stack.running).start()
            announce(stack, plan, "stop it with Ctrl-C")
            watch(stack, note)
        except BaseException as err:
            note("stopping; Ctrl-C once more to do it by force" if type(err) is KeyboardInterrupt else "stopping")
            stop(home, stack.running)
            if not isinstance(err, Terminated):
                raise
        else:
            note("stopped by another command")


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does."""

    def end(_: int, __: FrameType | None) -> None:
        raise Terminated

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def announce(stack: Stack, plan: Plan, ending: str) -> None:
    """Where it listens, what it serves, and a question to copy."""
    from scripts.stack.samples import curl

    running = stack.running
    model, version = next(iter(plan.defaults.items()))
    archive = next(a for a in plan.archives if (a.name, a.version) == (model, version))
    command = curl(running.predictions, model, archive.samples[0] if archive.samples else None)
    if running.gateway and running.gateway.settings.api_keys:
        command += " -H 'x-api-key: YOUR-KEY'"
    versions = [
        {"model": a.name, "version": a.version, "default": plan.defaults[a.name] == a.version} for a in plan.archives
    ]
    served = ", ".join(f"{v['model']} {v['version']}{' (default)' if v['default'] else ''}" for v in versions)
    content = {
        "gateway": running.gateway.address if running.gateway else None,
        "inference": running.inference,
        "management": running.management,
        "metrics": running.metrics,
        "pid": running.pid,
        "state": str(stack.state.folder),
        "versions": versions,
        "curl": command,
    }
    figures = running.predictions if running.gateway else running.metrics
    text = f"serving {served}\n  predictions  {running.predictions}\n  management   {running.management}\n"
    text += f"  metrics      {figures}/metrics\n  logs         {stack.state.logs}\ntry:\n  {command}\n{ending}"
    result(content, text)


@click.command()
@common
def down(state: Path) -> None:
    """Stop the stack, and clean up what a dead one left. It is no failure if nothing runs.

    Example: marctl down
    """
    from scripts.stack.state import State
    from scripts.stack.torchserve import find, stop

    home = State(state)
    with home.locked():
        running = home.running()
        if running is None:
            result({"stopped": False}, f"nothing runs in {home.folder}")
            return
        alive = find(home, running) is not None
        if alive:
            gateway = f"Envoy (pid {running.gateway.pid}) and " if running.gateway else ""
            note(f"stopping {gateway}TorchServe (pid {running.pid})")
        stop(home, running)
    text = f"stopped, {running.predictions} is free" if alive else "it had died already; what it left is removed"
    result({"stopped": alive, "pid": running.pid}, text)


@click.command()
@common
def status(state: Path) -> None:
    """What is served: versions, workers, queues. Exit code 1 if nothing runs.

    Example: marctl status --json
    """
    from scripts.stack.state import State
    from scripts.stack.up import status
    from scripts.stack.versions import Stack

    content = status(Stack.open(State(state)))
    result(content, describe(content))


def describe(content: dict[str, Any]) -> str:
    """The status as a table for people."""
    head = f"TorchServe pid {content['pid']}, {content['server_memory_mb']} MiB, since {content['started_at']}\n"
    if content["gateway"]:
        head += f"Envoy pid {content['gateway_pid']}, open at {content['gateway']}, admin {content['admin']}\n"
    head += f"{describe_redis(content)}\n"
    head += f"predictions {content['inference']}, management {content['management']}, metrics {content['metrics']}\n\n"
    return head + table([TITLES, *(cells(row) for row in content["versions"])])


def describe_redis(content: dict[str, Any]) -> str:
    if content["redis"] is None:
        return "no Redis: answers are neither cached nor logged"
    where = f"Redis pid {content['redis_pid']}" if content["redis_pid"] else "Redis"
    if content["redis_answers"]:
        return f"{where} at {content['redis']}"
    return f"{where} at {content['redis']}, which does not answer: answers are neither cached nor logged"


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        row["version"],
        "yes" if row["default"] else "",
        f"{row['workers_ready']}/{row['workers_asked']}",
        " ".join(map(str, row["pids"])),
        str(row["memory_mb"]),
        f"{row['queue']}/{row['queue_size']}",
        f"{row['batch_size']}/{row['batch_delay_ms']} ms",
        row["archive"],
        (row["loaded_since"] or "").replace("T", " ").split(".")[0],
    ]
