"""The traffic of a running stack: its documents, their history, and the steps that bring them into force."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from scripts.door import envoy
from scripts.door.documents import Traffic, check, default_traffic, dump
from scripts.door.settings import DoorSettings
from scripts.errors import UserError
from scripts.server.lanes import lane_of, models_in
from scripts.server.state import DamagedState, State
from scripts.server.versions import Notify, NotReady, Stack


class NoDoor(UserError):
    """The stack was started with --no-door, or its Envoy has died."""


def open_door(stack: Stack, ports: tuple[int, int], settings: DoorSettings, notify: Notify) -> Stack:
    """Start Envoy before what is served; returns the stack as it is now."""
    served = served_versions(stack)
    kept = keep_possible(stack.state, served, notify)
    notify(f"starting Envoy, port {ports[0]}")
    documents = in_force(stack, served, kept)
    door = envoy.start(stack.state, stack.running, ports, settings, served, documents)
    running = msgspec.structs.replace(stack.running, door=door)
    try:
        stack.state.save_running(running)
    except BaseException:
        envoy.stop(stack.state, door)
        raise
    return Stack.of(stack.state, running)


def keep_possible(state: State, served: Mapping[str, set[str]], notify: Notify) -> dict[str, Traffic]:
    """The written documents, less the versions that are no longer served; those are said."""
    documents: dict[str, Traffic] = {}
    for model, written in read_documents(state).items():
        document: Traffic | None = written
        for version in sorted(named(written) - served.get(model, set())):
            notify(f"warning: {model} {version} has a place in the traffic document and is not served; it is left out")
            document = document and document.without(version)
        if document is not None:
            documents[model] = document
    if documents != read_documents(state):
        save(state, documents, "up")
    return documents


def named(document: Traffic) -> set[str]:
    """All versions that a document names, even with weight 0."""
    return {*document.split, *document.shadow, *document.stand_ins}


def served_versions(stack: Stack) -> dict[str, set[str]]:
    """Every model that is registered, with its versions; those of its explaining workers under a name of their own."""
    return {model: {v.version for v in stack.management.versions(model)} for model in stack.management.models()}


def in_force(
    stack: Stack, served: Mapping[str, set[str]], written: Mapping[str, Traffic] | None = None
) -> dict[str, Traffic]:
    """Each served model's document: the written one, else all to its default version."""
    written = read_documents(stack.state) if written is None else written
    return {
        model: written.get(model) or default_traffic(stack.management.default_version(model))
        for model in models_in(served)
    }


def set_documents(stack: Stack, changed: Mapping[str, Traffic], command: str) -> None:
    """Check new documents, bring them into force, and only then keep them. Raises TrafficInvalid or DoorFailed."""
    require_door(stack)
    served = served_versions(stack)
    models = {model: served[model] for model in models_in(served)}
    for model, document in changed.items():
        check(model, document, models)
        require_workers(stack, model, document)
    documents = read_documents(stack.state) | dict(changed)
    envoy.apply(stack.state, stack.running, served, in_force(stack, served, documents))
    save(stack.state, documents, command)


def forget_document(stack: Stack, model: str, command: str) -> None:
    """All of the model's traffic to its default version."""
    require_door(stack)
    documents = {name: document for name, document in read_documents(stack.state).items() if name != model}
    served = served_versions(stack)
    envoy.apply(stack.state, stack.running, served, in_force(stack, served, documents))
    save(stack.state, documents, command)


def require_door(stack: Stack) -> None:
    if stack.running.door is None:
        raise NoDoor("this stack runs without a door; start it with `marctl up`, without --no-door")
    refuse_dead_door(stack)


def refuse_dead_door(stack: Stack) -> None:
    """Raise NoDoor before a change that the door could not follow; a stack without one is well."""
    if stack.running.door is not None and envoy.find(stack.state, stack.running.door) is None:
        raise NoDoor(f"Envoy (pid {stack.running.door.pid}) has died; `marctl down`, then start again with `marctl up`")


def require_workers(stack: Stack, model: str, document: Traffic) -> None:
    """Raise NotReady if a version that is to answer has nobody to do it."""
    for version, weight in document.split.items():
        served = stack.management.describe(model, version)
        if weight > 0 and not served.ready:
            raise NotReady(f"{served} has no worker ready; start one: marctl scale {served} 1")


def refresh(stack: Stack) -> None:
    """Follow what was registered, unregistered or made the default."""
    if stack.running.door is not None:
        served = served_versions(stack)
        envoy.apply(stack.state, stack.running, served, in_force(stack, served))


def release(stack: Stack, model: str, version: str, command: str, *, force: bool) -> None:
    """Let no more requests come to a version that is about to go.

    Raises NotReady if its document needs it, unless `force` takes it out of there. It keeps its cluster for the
    requests that are under way; `refresh` drops that afterwards.
    """
    documents = read_documents(stack.state)
    document = documents.get(model)
    if document is not None and version in named(document):
        if version in document.versions and not force:
            raise NotReady(
                f"{model} {version} has {place(document, version)}; first move it: marctl route split {model} "
                f"VERSION=WEIGHT..., or take it out of the document: marctl unregister {model} {version} --force"
            )
        rest = document.without(version)
        documents = {name: d for name, d in documents.items() if name != model} | ({model: rest} if rest else {})
    if stack.running.door is not None:
        served = served_versions(stack)
        leaving = (model, lane_of(model))
        remaining = {name: versions - ({version} if name in leaving else set()) for name, versions in served.items()}
        remaining = {name: versions for name, versions in remaining.items() if versions}
        envoy.apply_routes(stack.state, stack.running, remaining, in_force(stack, remaining, documents))
    save(stack.state, documents, command)


def place(document: Traffic, version: str) -> str:
    """What a version does in a document, for a message."""
    parts = [f"weight {document.split[version]:g}"] if document.split.get(version) else []
    parts += ["a shadow's copies"] if version in document.shadow else []
    parts += ["a rung of the fallback ladder"] if version in document.fallback else []
    return " and ".join(parts)


def refuse_parking(stack: Stack, model: str, version: str) -> None:
    """Raise NotReady if a version without workers would leave requests unanswered."""
    document = read_documents(stack.state).get(model)
    if document is not None and version in document.versions:
        raise NotReady(
            f"{model} {version} has {place(document, version)} and must keep a worker; "
            f"first move it: marctl route split {model} VERSION=WEIGHT..."
        )


def read_documents(state: State) -> dict[str, Traffic]:
    """What operators wrote, by model; checked when it was taken."""
    try:
        content = state.traffic.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return msgspec.yaml.decode(content, type=dict[str, Traffic]) or {}
    except msgspec.DecodeError as err:
        raise DamagedState(f"{state.traffic}: {err}; mend it or remove it") from err


def save(state: State, documents: Mapping[str, Traffic], command: str) -> None:
    """Keep the documents, and tell the history what changed."""
    before = read_documents(state)
    changed = sorted(m for m in {*before, *documents} if before.get(m) != documents.get(m))
    if not changed:
        return
    partial = state.traffic.with_suffix(".partial")
    partial.write_text(dump(documents), encoding="utf-8")
    os.replace(partial, state.traffic)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with state.traffic_history.open("a", encoding="utf-8") as file:
        for model in changed:
            step = {"before": plain(before.get(model)), "after": plain(documents.get(model))}
            file.write(json.dumps({"at": now, "model": model, "command": command, **step}) + "\n")


def plain(document: Traffic | None) -> Any:
    return msgspec.to_builtins(document)


def history(state: State, model: str | None) -> list[dict[str, Any]]:
    """Every change, oldest first."""
    if not state.traffic_history.exists():
        return []
    lines = map(json.loads, state.traffic_history.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if model in (None, line["model"])]
