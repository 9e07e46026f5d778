"""What a stack looks like from outside: for `marctl status`, and for whoever asks one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil

from marctl.core.errors import UserError
from marctl.core.explainers import SUFFIX, explainer_of, is_explainer, models_in
from marctl.core.order import version_order
from marctl.core.shared import is_shared
from marctl.core.sole import holder
from marctl.gateway.envoy import GatewayFailed
from marctl.gateway.settings import GatewaySettings
from marctl.records.keeper import figures_of
from marctl.stack import redis_server
from marctl.stack.autoscaler import last_report
from marctl.stack.document import Document, Model
from marctl.stack.follow import conditions, readable
from marctl.stack.history import HistoryDamaged
from marctl.stack.management import Management, NoSuchVersion, Served
from marctl.stack.place import PlaceAway, Report, place_of
from marctl.stack.report import Following
from marctl.stack.servers import alive
from marctl.stack.shared import held_by, members_in, unpacked_in
from marctl.stack.state import DamagedState, Running, State
from marctl_handlers.shared.report import Held

MIB = 1 << 20
OLD_S = 10.0
"""After so long without a report, what a node told last may not hold."""


class NotRunning(UserError):
    """This state folder has no stack that is up."""


@dataclass(frozen=True)
class Stack:
    """A running stack and the state folder it belongs to."""

    state: State
    running: Running
    management: Management

    @classmethod
    def open(cls, state: State) -> Stack:
        """The stack that is up; raises NotRunning."""
        running = running_stack(state)
        return cls(state, running, Management(running.management))


def running_stack(state: State) -> Running:
    """Raises NotRunning if TorchServe does not run."""
    running = state.running()
    if running is None:
        raise NotRunning(f"nothing runs in {state.folder}; start it with `marctl up`")
    if not alive(running.server):
        cure = "it is being started" if state.reconciler() else "start it again with `marctl up`"
        pid = f"pid {running.server.pid}" if running.server else "not started yet"
        raise NotRunning(f"the server of {state.folder} ({pid}) has died; {cure}; its log is {state.server_log}")
    return running


def trusted_keys(state: State) -> str | None:
    """The folder of keys that must have signed every archive; None where none must."""
    try:
        trust = state.trust()
    except DamagedState as err:
        return f"nobody: {err}"
    return str(trust.folder) if trust else None


def status(state: State) -> dict[str, Any]:
    """Everything that `marctl status` shows."""
    stack = Stack.open(state)
    running, reconciler = stack.running, state.reconciler()
    report = state.status()
    served, shared = every_version(stack), shared_ones(stack)
    try:
        declared, document = state.history.current().revision, state.history.current().document
        trouble = ""
    except HistoryDamaged as err:
        declared, document, trouble = report.observed, Document(), str(err)
    following = readable(state)
    found = [*msgspec.to_builtins(report.conditions), *(conditions(following) if following else [])]
    return {
        "running": True,
        "state": str(state.folder),
        "revision": declared,
        "observed": report.observed,
        "reconciler_pid": reconciler.pid if reconciler else None,
        "conditions": [*found, *([{"what": "the history", "reason": trouble}] if trouble else [])],
        "pid": running.server.pid if running.server else None,
        "started_at": running.started_at,
        "inference": running.inference,
        "management": running.management,
        "metrics": running.metrics,
        "gateway": running.gateway.address if running.gateway else None,
        "gateway_pid": running.gateway.pid if running.gateway else None,
        "admin": running.gateway.admin if running.gateway else None,
        "draining": draining(state, running),
        "trusted_keys": trusted_keys(state),
        **redis_status(state, running, redis_server.CACHE),
        **redis_status(state, running, redis_server.FEATURES),
        "log": msgspec.to_builtins(figures_of(state.prediction_log)),
        "autoscaler": autoscaling(state),
        "store": running.store,
        "server_memory_mb": memory_mb(running.server.pid) if running.server else 0,
        "versions": [
            *(row(version, document) for version in served),
            *(member_row(key, shared, document) for key in sorted(shared.members, key=in_order)),
        ],
        "shared": [worker_row(each, shared) for each in shared.served],
        **({"follow": followed(following), "nodes": nodes(following)} if following else {}),
    }


def draining(state: State, running: Running) -> bool:
    """Whether its gateway was taken out of service by `marctl drain`."""
    with suppress(GatewayFailed):
        return running.gateway is not None and state.envoy(running.ports, GatewaySettings()).draining
    return False


def autoscaling(state: State) -> dict[str, Any] | None:
    """The autoscaler that runs, and what it wanted last; None without one."""
    process = holder(state.autoscaler_lock)
    return None if process is None else {"pid": process.pid, **msgspec.to_builtins(last_report(state))}


def followed(following: Following) -> dict[str, Any]:
    """The place that a node follows, and what it saw there last."""
    seen: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(following, trouble="", since=""))
    return seen | {"place": place_of(following.place).name}


def nodes(following: Following) -> list[dict[str, Any]]:
    """All nodes that report at its place, this one included; none while the place is away."""
    with suppress(PlaceAway):
        reports = place_of(following.place).reports()
        return [node_row(report, age, here=report.node == following.node) for report, age in reports]
    return []


def node_row(report: Report, age_s: float, *, here: bool) -> dict[str, Any]:
    return {
        "node": report.node,
        "here": here,
        "digest": report.digest,
        "revision": report.revision,
        "in_force": report.in_force,
        "observed": report.observed,
        "conditions": msgspec.to_builtins(report.conditions),
        "age_s": round(age_s, 1),
        "old": age_s > OLD_S,
    }


def redis_status(state: State, running: Running, instance: redis_server.Instance) -> dict[str, Any]:
    """The pid is None for one that the environment names, and for our own after it has died."""
    redis, name = getattr(running, instance.place), instance.place
    if redis is None:
        return {name: None, f"{name}_pid": None, f"{name}_answers": False}
    process = redis_server.find(state, redis)
    return {
        name: redis_server.shown(redis.url),
        f"{name}_pid": process.pid if process else None,
        f"{name}_answers": redis_server.answers(redis.url),
    }


def every_version(stack: Stack) -> list[Served]:
    """By model and version, those in shared workers aside; a model that goes meanwhile is left out."""
    found: list[Served] = []
    for model in sorted(name for name in stack.management.models() if not is_shared(name)):
        with suppress(NoSuchVersion):
            found += sorted(stack.management.versions(model), key=lambda served: version_order(served.version))
    return found


def served_models(stack: Stack) -> list[str]:
    """Those that predict."""
    return models_in(name for name in stack.management.models() if not is_shared(name))


@dataclass(frozen=True)
class SharedOnes:
    """The shared workers of a stack, and the versions on their lists."""

    served: list[Served]
    members: dict[tuple[str, str], Served]
    """Model and version to whose process it is in."""
    held: set[str]
    """`model/version` of all that a process has loaded."""
    figures: dict[str, list[Held]]
    """By the worker's name: what each of its processes holds."""


def shared_ones(stack: Stack) -> SharedOnes:
    unpacked = unpacked_in(stack.running)
    served = [
        served
        for name in sorted(stack.management.models())
        if is_shared(name)
        for served in stack.management.versions(name)
    ]
    figures = {each.model: held_by(each, unpacked) for each in served}
    members = {
        (explainer_of(member.model) if is_explainer(each.model) else member.model, member.version): each
        for each in served
        for member in members_in(each, unpacked)
    }
    held = {name for each in figures.values() for one in each for name in one.versions}
    return SharedOnes(served, members, held, figures)


def member_row(key: tuple[str, str], shared: SharedOnes, document: Document) -> dict[str, Any]:
    """A version in a shared worker: whose processes and queue those of the row are."""
    model = document.models.get(key[0])
    content = document.find(key[0].removesuffix(SUFFIX), key[1])
    found = row(shared.members[key], document) | {"model": key[0], "version": key[1], "memory_mb": 0}
    return found | {
        "default": model is not None and model.default == key[1],
        **traffic_of(model, key[1]),
        "archive": content.file if content else "",
        "shared": shared.members[key].model,
        "resident": f"{key[0].removesuffix(SUFFIX)}/{key[1]}" in shared.held,
    }


def workers_of(served: Served) -> dict[str, Any]:
    """Its processes, and what waits for them."""
    return {
        "workers_ready": served.ready,
        "workers_asked": served.asked,
        "pids": served.pids,
        "memory_mb": sum(memory_mb(pid) for pid in served.pids),
        "queue": served.queue,
        "queue_size": served.queue_size,
    }


def worker_row(served: Served, shared: SharedOnes) -> dict[str, Any]:
    """A shared worker: its processes, and what they hold."""
    figures = shared.figures[served.model]
    return {
        "worker": served.model,
        **workers_of(served),
        "versions": sum(each is served for each in shared.members.values()),
        "resident": len({name for each in figures for name in each.versions}),
        "resident_mb": round(sum(each.bytes for each in figures) / MIB, 1),
    }


def row(served: Served, document: Document) -> dict[str, Any]:
    """A version with its workers. The default is the declared one; workers that explain have none of their own."""
    model = document.models.get(served.model)
    return {
        "model": served.model,
        "version": served.version,
        "default": model is not None and model.default == served.version,
        **traffic_of(model, served.version),
        **workers_of(served),
        "batch_size": served.batch_size,
        "batch_delay_ms": served.batch_delay_ms,
        "archive": served.archive,
        "loaded_since": min((worker.since for worker in served.workers), default=None),
    }


def traffic_of(model: Model | None, version: str) -> dict[str, float | None]:
    """In percent of the model's requests, which it answers or gets copies of; None for workers that explain."""
    if model is None:
        return {"traffic": None, "shadow": None}
    return {"traffic": model.policy.share(version), "shadow": model.policy.shadow.get(version, 0.0)}


def in_order(key: tuple[str, str]) -> tuple[Any, ...]:
    return key[0], version_order(key[1])


def memory_mb(pid: int) -> int:
    """Resident memory, 0 for a process that is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss // MIB)
    except psutil.Error:
        return 0
