"""Which versions the gateway knows and who gets what share, from what is declared and what answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import msgspec

from marctl.core.explainers import explainer_of
from marctl.core.order import version_order
from marctl.gateway.policies import Traffic
from marctl.stack.document import Document, Model

Key = tuple[str, str]
"""The name that something is registered under, and its version."""
Routing = tuple[dict[str, set[str]], dict[str, Traffic], dict[Key, str]]
"""The third part: where in the server a version is that is not registered under its own names."""


def routing(
    document: Document,
    answering: Collection[Key],
    addresses: Mapping[Key, str] = MappingProxyType({}),
    loading: Collection[Key] = (),
) -> Routing:
    """Versions by name, and the policy of each model, as the gateway is to follow them.

    A declared version that does not answer gets no traffic while another one of its model does, unless its policy has a
    fallback that answers: then it keeps its place, and the gateway falls back and says so. It comes back by itself. A
    model of which none answers keeps its routes, for clients to be told 503 and not 404; so does a version whose
    explainer workers do not answer, or not yet. `addresses`: where versions in shared workers are.
    """
    served: dict[str, set[str]] = {}
    policies: dict[str, Traffic] = {}
    for name, model in document.models.items():
        there = {version for version in model.versions if (name, version) in answering}
        in_turn = {*model.policy.split, *model.policy.stand_ins} & set(model.versions)
        there |= {version for version in in_turn if covered(model.policy, version, there)}
        served[name] = there or set(model.versions)
        policies[name] = restricted(model, there) if there else model.policy
        explainers = {version: (explainer_of(name), version) for version in model.versions}
        explaining = {version for version, key in explainers.items() if key in answering or key in loading}
        if explaining:
            served[explainer_of(name)] = explaining
    known = {(name, version) for name, versions in served.items() for version in versions}
    return served, policies, {key: there for key, there in addresses.items() if key in known}


def covered(policy: Traffic, version: str, there: Collection[str]) -> bool:
    """Whether another version that is there stands in for this one."""
    return any(other in there for other in policy.fallbacks_after(version))


def restricted(model: Model, there: Collection[str]) -> Traffic:
    """A model's policy without the versions that are not there."""
    policy: Traffic | None = model.policy
    for version in model.versions:
        if version not in there and policy is not None:
            policy = policy.without(version)
    if policy is not None:
        return policy
    # Nobody of the split is left: the next best answers.
    wanted = [model.default, *model.policy.stand_ins, *sorted(there, key=version_order, reverse=True)]
    only = next(version for version in wanted if version in there)
    fallback = [entry for entry in model.policy.fallback if entry not in model.versions or entry in there]
    return msgspec.structs.replace(model.policy, split={only: 100}, shadow={}, fallback=fallback)
