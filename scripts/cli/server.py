"""`marctl up`, `down`, `drain` and `status`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.output import common, emit_json, note, recipes_option, result, store_option, table

if TYPE_CHECKING:
    from marctl.stack.servers import Request
    from marctl.stack.state import State

TITLES = [
    "model",
    "version",
    "default",
    "traffic",
    "workers",
    "pids",
    "MiB",
    "queue",
    "batch",
    "archive",
    "since (UTC)",
]
NODE_TITLES = ["node", "revision", "digest", "state", "age", "conditions"]
PORT = click.IntRange(0, 65535)
MIB = 1 << 20


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
    "--batch-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of the batch service: folders that its jobs may read and write.",
)
@click.option(
    "--upstream", "upstreams", multiple=True, metavar="IP:PORT", help="One more TorchServe behind the gateway."
)
@click.option("--no-gateway", is_flag=True, help="TorchServe alone, without Envoy before it.")
@click.option(
    "--no-redis", is_flag=True, help="No cache, no log, no features; else the Redis of REDIS_URL, or its own."
)
@click.option("--port", type=PORT, default=8080, show_default=True, help="TorchServe's predictions.")
@click.option("--management-port", type=PORT, default=8081, show_default=True, help="TorchServe's management API.")
@click.option("--metrics-port", type=PORT, default=8082, show_default=True, help="Prometheus metrics.")
@recipes_option
@store_option
@click.option("--workers", type=click.IntRange(1), help="Workers of every version; declared, so kept.")
@click.option(
    "--follow", metavar="PLACE", help="Serve the document of this YAML file or redis:// URL, and follow its changes."
)
@click.option("--node", metavar="NAME", help="This node's name among those that follow; by default HOST:PORT.")
@click.option("--logs", is_flag=True, help="Print what all parts log, as lines of JSON; for a container.")
@click.option(
    "--autoscale",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Add and take away workers by load; FILE holds bounds and objectives (marctl autoscale --help).",
)
@click.option(
    "--require-signed",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="KEYS",
    help="Load only archives that a public key in this folder has signed; holds until --allow-unsigned.",
)
@click.option("--allow-unsigned", is_flag=True, help="Load any archive again.")
@click.option("--detach", is_flag=True, help="Return once everything serves; stop it with `marctl down`.")
def up(
    state: Path,
    gateway_port: int,
    gateway_config: Path | None,
    batch_config: Path | None,
    upstreams: tuple[str, ...],
    no_gateway: bool,
    no_redis: bool,
    port: int,
    management_port: int,
    metrics_port: int,
    recipes: Path,
    store: Path,
    workers: int | None,
    follow: str | None,
    node: str | None,
    logs: bool,
    autoscale: str | None,
    require_signed: Path | None,
    allow_unsigned: bool,
    detach: bool,
) -> None:
    """Build, start and check everything, then serve until Ctrl-C, restarting whatever dies.

    What is declared is served, and versions that recipes describe on top; of a new model the highest version is the
    default. Where the stack runs and the process that looked after it was killed, this takes over, without a gap.

    With --follow, what is served is what the document at PLACE says, and nothing else; each node needs its archives.

    With --require-signed, nothing is built here, and no archive is loaded that nobody in KEYS vouches for.

    Example: marctl up --port 9080 --detach
    """
    from marctl.stack.follow import check_node
    from marctl.stack.place import absolute, place_of
    from marctl.stack.servers import Request
    from marctl.stack.state import State
    from marctl.stack.up import Terminated, serve, serve_detached, terminable

    if logs and detach:
        raise click.UsageError("--logs prints while marctl runs, and --detach ends it; give only one of them")
    if follow is not None and workers is not None:
        raise click.UsageError("--workers is declared, and the document at PLACE declares it; give only one of them")
    if follow is not None:
        follow = place_of(absolute(follow)).text
    if node is not None:
        check_node(node)
    if autoscale is not None:
        autoscale = checked_settings(autoscale, follow)
    if batch_config is not None:
        from marctl.batch.service.settings import read_settings

        if no_gateway:
            raise click.UsageError("--batch-config needs the gateway, which clients reach the batch service through")
        read_settings(batch_config)
    if require_signed is not None:
        from marctl.signing.trust import Trust, refuse_empty

        if allow_unsigned:
            raise click.UsageError("--require-signed and --allow-unsigned contradict each other")
        refuse_empty(Trust(require_signed))
    home = State(state)
    request = Request(
        recipes=str(recipes.resolve()),
        store=str(store.resolve()),
        inference_port=port,
        management_port=management_port,
        metrics_port=metrics_port,
        workers=workers,
        gateway_port=None if no_gateway else gateway_port,
        # Links are kept: a mounted ConfigMap or Secret changes by swapping one.
        gateway_config=str(gateway_config.absolute()) if gateway_config else None,
        batch_config=str(batch_config.absolute()) if batch_config else None,
        upstreams=upstreams,
        redis=not no_redis,
        follow=follow,
        node=node,
        autoscale=autoscale,
        trusted=str(require_signed.absolute()) if require_signed else None,
        allow_unsigned=allow_unsigned,
    )
    with terminable():
        if detach:
            serve_detached(home, request, note)
            announce(home, f"stop it with: marctl down --state {state}")
            return
        if logs:
            serve_and_print(home, request)
            return
        try:
            serve(home, request, note, lambda: announce(home, "stop it with Ctrl-C"))
        except Terminated:
            note("stopped")


def serve_and_print(home: State, request: Request) -> None:
    """Serve in the foreground, and print only what the parts log; this process's own faults go to standard error."""
    import logging

    from marctl.stack.log_lines import following
    from marctl.stack.up import Terminated, recorded, serve
    from marctl_handlers.core.log_lines import log_in_json

    logging.basicConfig(level=logging.WARNING)
    log_in_json("reconciler")
    tell = recorded(home, lambda _: None)
    with following(home.logs, lambda line: emit_json(line.content)):
        try:
            serve(home, request, lambda _: None, lambda: tell("serving"))
        except Terminated:
            tell("stopped")


def checked_settings(path: str, follow: str | None) -> str:
    """The absolute path of an autoscaler's settings; empty for none. Raises UserError for a file with faults."""
    from marctl.capacity.settings import read_settings

    if follow is not None:
        raise click.UsageError("--autoscale changes the document, and with --follow the one at PLACE says what runs")
    read_settings(Path(path) if path else None)
    return str(Path(path).resolve()) if path else ""


def announce(state: State, ending: str) -> None:
    """Where it listens, what it serves, and a question to copy."""
    from marctl.stack.document import Document
    from marctl.stack.samples import curl
    from marctl.stack.store import declared_archive

    running, document = state.running(), state.history.current().document
    assert running is not None
    versions = [
        {
            "model": model,
            "version": version,
            "default": document.models[model].default == version,
            "traffic": document.models[model].policy.share(version),
        }
        for model, version, _ in document.versions()
    ]
    command = ""
    if document != Document():
        model = min(document.models)
        default = document.models[model].default
        archive = declared_archive(Path(running.store), model, default, document.models[model].versions[default])
        command = curl(running.predictions, model, archive.samples[0] if archive.samples else None)
        command += " -H 'x-api-key: YOUR-KEY'" if running.gateway and state.gateway_settings().api_keys else ""
    content = {
        "gateway": running.gateway.address if running.gateway else None,
        "inference": running.inference,
        "management": running.management,
        "metrics": running.metrics,
        "pid": running.server.pid if running.server else None,
        "state": str(state.folder),
        "revision": state.history.current().revision,
        "versions": versions,
        "curl": command,
    }
    served = ", ".join(f"{v['model']} {v['version']}{place(v)}" for v in versions)
    figures = running.predictions if running.gateway else running.metrics
    text = f"serving {served or 'nothing yet'}\n  predictions  {running.predictions}\n"
    text += f"  management   {running.management}\n  metrics      {figures}/metrics\n  logs         {state.logs}\n"
    text += f"try:\n  {command}\n{ending}" if command else ending
    result(content, text)


def place(version: dict[str, Any]) -> str:
    """Beside a version's name: whether it is the default, and its share of the requests where that says otherwise."""
    parts = ["default"] if version["default"] else []
    if version["traffic"] != (100 if version["default"] else 0):
        parts.append(f"{version['traffic']:g} %")
    return f" ({', '.join(parts)})" if parts else ""


@click.command()
@common
def down(state: Path) -> None:
    """Stop the stack, and clean up what a dead one left. It is no failure if nothing runs.

    Example: marctl down
    """
    from marctl.stack.state import State
    from marctl.stack.up import stop

    home = State(state)
    stopped = stop(home, note)
    result({"stopped": stopped}, "stopped" if stopped else f"nothing runs in {home.folder}")


@click.command()
@common
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Return after this time, in which load balancers notice.",
)
@click.option("--undo", is_flag=True, help="Put it back into service.")
def drain(state: Path, seconds: float, undo: bool) -> None:
    """Take the gateway out of service; it goes on answering. Before a stop, so that no request is lost.

    /ready turns 503, so that load balancers send no more requests here, and every connection ends with its next answer.

    Example: marctl drain --seconds 10 && marctl down
    """
    from marctl.stack import drain as draining
    from marctl.stack.state import State

    if undo:
        draining.undrain(State(state))
        result({"draining": False}, "in service again")
        return
    draining.drain(State(state), seconds)
    result({"draining": True}, "out of service; what comes is still answered, until marctl down or marctl drain --undo")


@click.command()
@common
def status(state: Path) -> None:
    """Show what is served: versions, traffic, workers, queues. Exit code 1 if nothing runs.

    Example: marctl status --json
    """
    from marctl.stack.look import status
    from marctl.stack.state import State

    content = status(State(state))
    result(content, describe(content))


@click.command()
@common
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each model.",
)
def check(state: Path, timeout_s: float) -> None:
    """Ask each model one of its sample requests, as a client would. Exit code 1 if one is not answered.

    \b
    For a container's health check. The requests are in the prediction log; their ids begin with `check-`.

    Example: marctl check
    """
    from msgspec import to_builtins

    from marctl.stack.check import check
    from marctl.stack.state import State

    answers = check(State(state), timeout_s)
    rows = [f"{each.model} {each.version}  {'busy' if each.busy else f'{each.ms} ms'}" for each in answers]
    result({"answers": to_builtins(answers)}, "\n".join(rows) or "no model to ask")


def describe(content: dict[str, Any]) -> str:
    """The status as a table for people."""
    head = f"TorchServe pid {content['pid']}, {content['server_memory_mb']} MiB, since {content['started_at']}\n"
    if content["gateway"]:
        out = ", out of service: marctl drain --undo" if content["draining"] else ""
        head += f"Envoy pid {content['gateway_pid']}, open at {content['gateway']}, admin {content['admin']}{out}\n"
    head += f"{describe_redis(content)}{describe_features(content)}\n"
    head += describe_log(content["log"])
    head += describe_autoscaler(content["autoscaler"])
    if content["trusted_keys"]:
        head += f"archives must be signed by a key in {content['trusted_keys']}\n"
    head += f"predictions {content['inference']}, management {content['management']}, metrics {content['metrics']}\n\n"
    rows = table([TITLES, *(cells(row) for row in content["versions"])])
    shared = [line for each in content["shared"] for line in describe_shared(each)]
    return "\n".join([head + rows, "", *shared, *describe_declared(content), *describe_nodes(content)])


def describe_shared(row: dict[str, Any]) -> list[str]:
    """A shared worker and what it holds."""
    processes = f"{row['workers_ready']}/{row['workers_asked']} processes ({' '.join(map(str, row['pids']))})"
    held = f"{row['resident']} of {row['versions']} versions loaded, {row['resident_mb']} MiB of {row['memory_mb']}"
    return [f"{row['worker']}: {processes}, {held}, queue {row['queue']}/{row['queue_size']}"]


def describe_nodes(content: dict[str, Any]) -> list[str]:
    """The nodes that follow the same document; nothing for a stack that follows none."""
    if "follow" not in content:
        return []
    rows = [node_cells(row) for row in content["nodes"]]
    lines = ["", f"node {content['follow'].get('node', '')} follows {content['follow']['place']}"]
    return [*lines, *([table([NODE_TITLES, *rows])] if rows else [])]


def node_cells(row: dict[str, Any]) -> list[str]:
    revision = "" if row["revision"] is None else str(row["revision"])
    why = "; ".join(f"{each['what']}: {each['reason']}".split("\n")[0] for each in row["conditions"])
    state = "in force" if row["in_force"] else "not in force"
    age = f"{row['age_s']:.0f} s" + (", old" if row["old"] else "")
    name = f"{row['node']} (here)" if row["here"] else row["node"]
    return [name, revision, row["digest"][:12], state, age, why]


def describe_autoscaler(report: dict[str, Any] | None) -> str:
    """The autoscaler that runs, in one line; nothing without one."""
    if report is None:
        return ""
    wants = [f"{each['model']} {each['version']} wants {each['wanted']}, {each['kind']}" for each in report["versions"]]
    return f"autoscaler pid {report['pid']}: {'; '.join(wants) or 'nothing looked at yet'}\n"


def describe_declared(content: dict[str, Any]) -> list[str]:
    """How what runs compares with what is declared."""
    lines = [f"revision {content['revision']}" + (", in force" if content["observed"] == content["revision"] else "")]
    if content["observed"] != content["revision"]:
        lines[0] += f" is declared, {content['observed']} is in force"
    if content["reconciler_pid"] is None:
        lines.append("nobody follows it: `marctl up` takes over what runs, and starts again what dies")
    return [*lines, *(f"  {condition['what']}: {condition['reason']}" for condition in content["conditions"])]


def describe_redis(content: dict[str, Any]) -> str:
    if content["redis"] is None:
        return "no Redis: answers are neither cached nor logged"
    where = f"Redis pid {content['redis_pid']}" if content["redis_pid"] else "Redis"
    if content["redis_answers"]:
        return f"{where} at {content['redis']}"
    return f"{where} at {content['redis']}, which does not answer: answers are neither cached nor logged"


def describe_features(content: dict[str, Any]) -> str:
    """Where features stand; nothing where that is the same Redis, or none."""
    where = content["features"]
    if where in (None, content["redis"]):
        return ""
    pid = f" pid {content['features_pid']}" if content["features_pid"] else ""
    away = "" if content["features_answers"] else ", which does not answer: features have their stand-ins"
    return f"; feature store{pid} at {where}{away}"


def describe_log(figures: dict[str, Any] | None) -> str:
    """What the prediction log keeps, in one line; nothing where none is kept."""
    if figures is None:
        return ""
    waiting = "?" if figures["undrained"] is None else f"{figures['undrained']:,}"
    kept = f"{figures['kept_bytes'] / MIB:.1f} MiB of {figures['days']} days"
    return f"prediction log: {kept} in files, {waiting} records waiting, {figures['lost']:,} lost: marctl log status\n"


def traffic(row: dict[str, Any]) -> str:
    """`80 %`; what else it gets than requests whose answers clients see; nothing for workers that explain."""
    if row["traffic"] is None:
        return ""
    return f"{row['traffic']:g} %" + (f", {row['shadow']:g} % copies" if row["shadow"] else "")


def workers(row: dict[str, Any]) -> str:
    """`1/2 loading`: those that answer, of those that are asked for; a process that does not answer yet is loading."""
    if "shared" in row:
        return "shared"
    loading = " loading" if len(row["pids"]) > row["workers_ready"] else ""
    return f"{row['workers_ready']}/{row['workers_asked']}{loading}"


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        row["version"],
        "yes" if row["default"] else "",
        traffic(row),
        workers(row),
        " ".join(map(str, row["pids"])),
        str(row["memory_mb"]) if "shared" not in row else "loaded" if row["resident"] else "cold",
        f"{row['queue']}/{row['queue_size']}",
        f"{row['batch_size']}/{row['batch_delay_ms']} ms",
        row["archive"],
        (row["loaded_since"] or "").replace("T", " ").split(".")[0],
    ]
