"""Starts a whole stack, watches it, and describes it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from scripts.core.errors import UserError
from scripts.core.explainers import is_explainer
from scripts.core.order import version_order
from scripts.gateway import envoy
from scripts.gateway.settings import read_settings
from scripts.gateway.traffic import open_gateway
from scripts.stack import redis_server
from scripts.stack.java import find_java
from scripts.stack.logs import Position
from scripts.stack.management import NoSuchVersion, Served
from scripts.stack.plan import Plan, find_archives, make_plan
from scripts.stack.ports import choose_ports
from scripts.stack.state import Busy, Redis, Running, State
from scripts.stack.torchserve import find, last_words, make_temp, refuse_second, start, stop
from scripts.stack.versions import Notify, Stack, begin_explainer, begin_load, finish_explainer, finish_load

WATCH_S = 0.5
READINESS_EVERY_S = 5.0
MIB = 1 << 20


class ServerDied(UserError):
    """TorchServe or Envoy ended although nobody stopped it."""


@dataclass(frozen=True)
class Request:
    """What `marctl up` was asked for. Ports may be 0 for any free one."""

    recipes: Path
    store: Path
    inference_port: int
    management_port: int
    metrics_port: int
    workers: int | None = None
    gateway_port: int | None = None
    """None for no gateway."""
    gateway_config: Path | None = None
    upstreams: tuple[str, ...] = ()
    """Further TorchServe servers behind the gateway, on top of the configuration's."""
    redis: bool = True
    """Whether the workers may use one."""


def bring_up(state: State, request: Request, notify: Notify) -> tuple[Stack, Plan]:
    """Build, start, load and check everything; on any failure all of it is stopped again."""
    refuse_second(state)
    java = find_java()
    store = request.store.resolve()
    settings = read_settings(request.gateway_config, request.upstreams)
    ports = choose_ports(
        request.inference_port, request.management_port, request.metrics_port, request.gateway_port or 0
    )
    paths = find_archives(request.recipes, store, notify)
    plan = make_plan(paths, store, state.choices(), request.workers, notify)
    notify(f"starting TorchServe on Java {java.major}, port {ports.inference}")
    temp = make_temp(state)
    redis = provide_redis(state, temp, notify) if request.redis else None
    try:
        running = start(state, java, ports, store, temp, redis, os.environ)
    except BaseException:
        if redis is not None:
            redis_server.stop(state, redis)
        raise
    try:
        stack = Stack.of(state, running)
        load_all(stack, plan, notify)
        if request.gateway_port is not None:
            stack = open_gateway(stack, (ports.gateway, ports.admin), settings, notify)
    except BaseException:
        stop(state, running)
        raise
    return stack, plan


def provide_redis(state: State, temp: Path, notify: Notify) -> Redis | None:
    """Redis for the workers' cache and log; predictions go on without it, so its failure is a warning."""
    try:
        redis = redis_server.provide(state, temp, os.environ)
        if not redis_server.answers(redis.url):
            notify(f"warning: no Redis answers at {redis_server.shown(redis.url)}; the workers will go on trying")
    except UserError as err:
        notify(f"warning: without Redis, so without cache and log: {err}")
        return None
    return redis


def load_all(stack: Stack, plan: Plan, notify: Notify) -> None:
    """All versions load side by side; then each is checked, and the defaults are set."""
    logs = stack.mark()
    for archive in plan.archives:
        notify(f"{archive.name} {archive.version}: loading")
        begin_load(stack, archive, plan.workers_of(archive))
    for archive in plan.archives:
        finish_load(stack, archive, logs, notify)
    # After the predictions' workers, which then need not share the processor with these while they load.
    for archive in plan.explaining:
        begin_explainer(stack, archive, plan.explainer_workers_of(archive))
    for archive in plan.explaining:
        finish_explainer(stack, archive, logs, notify)
    for model, version in plan.defaults.items():
        stack.management.set_default(model, version)


def watch(stack: Stack, notify: Notify) -> None:
    """Return when the stack was stopped by another command; raises ServerDied if a part of it ended by itself."""
    log, gateway_log = Position.now(stack.state.server_log), Position.now(envoy.log_file(stack.state))
    gateway = stack.running.gateway
    before = readiness(stack)
    checked = time.monotonic()
    redis_trouble = ""
    while find(stack.state, stack.running) is not None and (
        gateway is None or envoy.find(stack.state, gateway) is not None
    ):
        time.sleep(WATCH_S)
        if time.monotonic() - checked >= READINESS_EVERY_S:
            before, checked = tell_changes(stack, before, notify), time.monotonic()
            redis_trouble = revive_redis(stack.state, redis_trouble, notify)
    now = stack.state.running()
    if now is None or now.stopping:
        return
    if gateway is not None and find(stack.state, stack.running) is not None:
        raise ServerDied(f"Envoy (pid {gateway.pid}) has ended{envoy.last_words(gateway_log)}")
    raise ServerDied(f"TorchServe (pid {stack.running.pid}) has ended{last_words(stack.state, log)}")


def tell_changes(stack: Stack, before: dict[str, str], notify: Notify) -> dict[str, str]:
    """Say which version's workers came or went; returns what to compare with next time."""
    now = readiness(stack) or before
    for name, ready in now.items():
        if before.get(name, ready) != ready:
            notify(f"{name}: {ready} workers ready; their log is {stack.state.workers_log}")
    return now


def revive_redis(state: State, trouble: str, notify: Notify) -> str:
    """Start our own Redis again if it has died; the workers find it at the same socket.

    `trouble`: why the last look could not; returns why this one could not, so that a reason is told once.
    """
    if dead_redis(state) is None:
        return ""
    try:
        with state.locked():
            found = dead_redis(state)  # another command may have stopped it before the lock was ours
            if found is None:
                return ""
            running, dead = found
            redis = redis_server.start(state, Path(running.temp))
            state.save_running(msgspec.structs.replace(running, redis=redis))
    except Busy:
        return trouble
    except UserError as err:
        if str(err) != trouble:
            notify(f"warning: Redis has died and does not start again, so no cache and no log: {err}")
        return str(err)
    notify(f"Redis (pid {dead}) had died and was started again, pid {redis.pid}; cached answers are gone")
    return ""


def dead_redis(state: State) -> tuple[Running, int] | None:
    """The stack and its own Redis's process id, if that ended by itself."""
    running = state.running()
    if running is None or running.stopping or running.redis is None or running.redis.pid is None:
        return None
    return None if redis_server.find(state, running.redis) else (running, running.redis.pid)


def readiness(stack: Stack) -> dict[str, str]:
    """`mcqa 1.0` to `1 of 1`; empty while the server does not answer."""
    try:
        return {str(served): f"{served.ready} of {served.asked}" for served in every_version(stack)}
    except UserError:
        return {}


def every_version(stack: Stack) -> list[Served]:
    """By model and version; a model that goes meanwhile is left out."""
    found: list[Served] = []
    for model in sorted(stack.management.models()):
        with suppress(NoSuchVersion):
            found += sorted(stack.management.versions(model), key=lambda served: version_order(served.version))
    return found


def status(stack: Stack) -> dict[str, Any]:
    """Everything that `marctl status` shows."""
    running = stack.running
    served = every_version(stack)
    defaults = {model: default_of(stack, model) for model in {version.model for version in served}}
    return {
        "running": True,
        "state": str(stack.state.folder),
        "pid": running.pid,
        "started_at": running.started_at,
        "inference": running.inference,
        "management": running.management,
        "metrics": running.metrics,
        "gateway": running.gateway.address if running.gateway else None,
        "gateway_pid": running.gateway.pid if running.gateway else None,
        "admin": running.gateway.admin if running.gateway else None,
        **redis_status(stack.state, running),
        "store": running.store,
        "server_memory_mb": memory_mb(running.pid),
        "versions": [row(version, defaults[version.model]) for version in served],
    }


def redis_status(state: State, running: Running) -> dict[str, Any]:
    """`redis_pid` is None for one that REDIS_URL names, and for our own after it has died."""
    redis = running.redis
    if redis is None:
        return {"redis": None, "redis_pid": None, "redis_answers": False}
    process = redis_server.find(state, redis)
    return {
        "redis": redis_server.shown(redis.url),
        "redis_pid": process.pid if process else None,
        "redis_answers": redis_server.answers(redis.url),
    }


def default_of(stack: Stack, model: str) -> str | None:
    """None for workers that explain, too: which of them is asked, the predictions' default decides."""
    if is_explainer(model):
        return None
    with suppress(NoSuchVersion):
        return stack.management.default_version(model)
    return None


def row(served: Served, default: str | None) -> dict[str, Any]:
    pids = [worker.pid for worker in served.workers if worker.pid > 0]
    return {
        "model": served.model,
        "version": served.version,
        "default": served.version == default,
        "workers_ready": served.ready,
        "workers_asked": served.asked,
        "pids": pids,
        "memory_mb": sum(memory_mb(pid) for pid in pids),
        "queue": served.queue,
        "queue_size": served.queue_size,
        "batch_size": served.batch_size,
        "batch_delay_ms": served.batch_delay_ms,
        "archive": served.archive,
        "loaded_since": min((worker.since for worker in served.workers), default=None),
    }


def memory_mb(pid: int) -> int:
    """Resident memory, 0 for a process that is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss // MIB)
    except psutil.Error:
        return 0
