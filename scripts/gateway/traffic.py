"""The traffic of a running stack: its policies, their history, and the steps that bring them into force."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from scripts.core.errors import UserError
from scripts.core.explainers import explainer_of, models_in
from scripts.gateway import envoy
from scripts.gateway.clusters import hosts_of
from scripts.gateway.health import Health, Workers, routed
from scripts.gateway.policies import Traffic, check, default_traffic, dump, place
from scripts.gateway.settings import GatewaySettings
from scripts.stack.state import DamagedState, State
from scripts.stack.versions import Notify, NotReady, Stack


class NoGateway(UserError):
    """The stack was started with --no-gateway, or its Envoy has died."""


def open_gateway(stack: Stack, ports: tuple[int, int], settings: GatewaySettings, notify: Notify) -> Stack:
    """Start Envoy before what is served; returns the stack as it is now."""
    served = served_versions(stack)
    kept = keep_possible(stack.state, served, notify)
    notify(f"starting Envoy, port {ports[0]}")
    policies = in_force(stack, served, kept)
    gateway = envoy.start(stack.state, stack.running, ports, settings, served, policies)
    running = msgspec.structs.replace(stack.running, gateway=gateway)
    try:
        stack.state.save_running(running)
    except BaseException:
        envoy.stop(stack.state, gateway)
        raise
    opened = Stack.of(stack.state, running)
    look(opened)
    return opened


def keep_possible(state: State, served: Mapping[str, set[str]], notify: Notify) -> dict[str, Traffic]:
    """The written policies, less the versions that are no longer served; those are said."""
    policies: dict[str, Traffic] = {}
    for model, written in read_policies(state).items():
        policy: Traffic | None = written
        for version in sorted(named(written) - served.get(model, set())):
            notify(f"warning: {model} {version} has a place in the traffic policy and is not served; it is left out")
            policy = policy and policy.without(version)
        if policy is not None:
            policies[model] = policy
    if policies != read_policies(state):
        save(state, policies, "up")
    return policies


def named(policy: Traffic) -> set[str]:
    """All versions that a policy names, even with weight 0."""
    return {*policy.split, *policy.shadow, *policy.stand_ins}


def served_versions(stack: Stack) -> dict[str, set[str]]:
    """Every model that is registered, with its versions; those of its explaining workers under a name of their own."""
    return {model: {v.version for v in stack.management.versions(model)} for model in stack.management.models()}


def in_force(
    stack: Stack, served: Mapping[str, set[str]], written: Mapping[str, Traffic] | None = None
) -> dict[str, Traffic]:
    """Each served model's policy: the written one, else all to its default version."""
    written = read_policies(stack.state) if written is None else written
    return {
        model: written.get(model) or default_traffic(stack.management.default_version(model))
        for model in models_in(served)
    }


def set_policies(stack: Stack, changed: Mapping[str, Traffic], command: str) -> None:
    """Check new policies, bring them into force, and only then keep them. Raises TrafficInvalid or GatewayFailed."""
    require_gateway(stack)
    served = served_versions(stack)
    models = {model: served[model] for model in models_in(served)}
    for model, policy in changed.items():
        check(model, policy, models)
        require_workers(stack, model, policy)
    policies = read_policies(stack.state) | dict(changed)
    envoy.apply(stack.state, stack.running, served, in_force(stack, served, policies))
    save(stack.state, policies, command)


def forget_policy(stack: Stack, model: str, command: str) -> None:
    """All of the model's traffic to its default version."""
    require_gateway(stack)
    policies = {name: policy for name, policy in read_policies(stack.state).items() if name != model}
    served = served_versions(stack)
    envoy.apply(stack.state, stack.running, served, in_force(stack, served, policies))
    save(stack.state, policies, command)


def require_gateway(stack: Stack) -> None:
    if stack.running.gateway is None:
        raise NoGateway("this stack runs without a gateway; start it with `marctl up`, without --no-gateway")
    refuse_dead_gateway(stack)


def refuse_dead_gateway(stack: Stack) -> None:
    """Raise NoGateway before a change that the gateway could not follow; a stack without one is well."""
    if stack.running.gateway is not None and envoy.find(stack.state, stack.running.gateway) is None:
        raise NoGateway(
            f"Envoy (pid {stack.running.gateway.pid}) has died; `marctl down`, then start again with `marctl up`"
        )


def require_workers(stack: Stack, model: str, policy: Traffic) -> None:
    """Raise NotReady if a version that is to answer has nobody to do it."""
    for version, weight in policy.split.items():
        served = stack.management.describe(model, version)
        if weight > 0 and not served.ready:
            raise NotReady(f"{served} has no worker ready; start one: marctl scale {served} 1")


def refresh(stack: Stack) -> None:
    """Follow what was registered, unregistered or made the default."""
    if stack.running.gateway is not None:
        served = served_versions(stack)
        envoy.apply(stack.state, stack.running, served, in_force(stack, served))
        look(stack)


def look(stack: Stack) -> None:
    """Tell the gateway which versions have workers, as TorchServe describes them."""
    gateway = stack.running.gateway
    if gateway is None:
        return
    hosts = hosts_of(stack.running.inference, gateway.settings)
    health = Health(envoy.folder(stack.state), hosts, Path(stack.running.temp) / "heartbeat")
    described = [v for model in stack.management.models() for v in stack.management.versions(model)]
    workers = [
        Workers(v.model, v.version, tuple(w.pid for w in v.workers), tuple(w.ready for w in v.workers))
        for v in described
    ]
    health.step(workers, routed(in_force(stack, served_versions(stack))))


def release(stack: Stack, model: str, version: str, command: str, *, force: bool) -> None:
    """Let no more requests come to a version that is about to go.

    Raises NotReady if its policy needs it, unless `force` takes it out of there. It keeps its cluster for the
    requests that are under way; `refresh` drops that afterwards.
    """
    policies = read_policies(stack.state)
    policy = policies.get(model)
    if policy is not None and version in named(policy):
        if version in policy.versions and not force:
            raise NotReady(
                f"{model} {version} has {place(policy, version)}; first move it: marctl route split {model} "
                f"VERSION=WEIGHT..., or take it out of the policy: marctl unregister {model} {version} --force"
            )
        rest = policy.without(version)
        policies = {name: d for name, d in policies.items() if name != model} | ({model: rest} if rest else {})
    if stack.running.gateway is not None:
        served = served_versions(stack)
        leaving = (model, explainer_of(model))
        remaining = {name: versions - ({version} if name in leaving else set()) for name, versions in served.items()}
        remaining = {name: versions for name, versions in remaining.items() if versions}
        envoy.apply_routes(stack.state, stack.running, remaining, in_force(stack, remaining, policies))
    save(stack.state, policies, command)


def refuse_parking(stack: Stack, model: str, version: str) -> None:
    """Raise NotReady if a version without workers would leave requests unanswered."""
    policy = read_policies(stack.state).get(model)
    if policy is not None and version in policy.versions:
        raise NotReady(
            f"{model} {version} has {place(policy, version)} and must keep a worker; "
            f"first move it: marctl route split {model} VERSION=WEIGHT..."
        )


def read_policies(state: State) -> dict[str, Traffic]:
    """What operators wrote, by model; checked when it was taken."""
    try:
        content = state.traffic.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return msgspec.yaml.decode(content, type=dict[str, Traffic]) or {}
    except msgspec.DecodeError as err:
        raise DamagedState(f"{state.traffic}: {err}; mend it or remove it") from err


def save(state: State, policies: Mapping[str, Traffic], command: str) -> None:
    """Keep the policies, and tell the history what changed."""
    before = read_policies(state)
    changed = sorted(m for m in {*before, *policies} if before.get(m) != policies.get(m))
    if not changed:
        return
    partial = state.traffic.with_suffix(".partial")
    partial.write_text(dump(policies), encoding="utf-8")
    os.replace(partial, state.traffic)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with state.traffic_history.open("a", encoding="utf-8") as file:
        for model in changed:
            step = {"before": plain(before.get(model)), "after": plain(policies.get(model))}
            file.write(json.dumps({"at": now, "model": model, "command": command, **step}) + "\n")


def plain(policy: Traffic | None) -> Any:
    return msgspec.to_builtins(policy)


def history(state: State, model: str | None) -> list[dict[str, Any]]:
    """Every change, oldest first."""
    if not state.traffic_history.exists():
        return []
    lines = map(json.loads, state.traffic_history.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if model in (None, line["model"])]
