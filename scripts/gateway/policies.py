"""Traffic policies: which versions of a model answer, in what shares, who listens along and who stands in.

    mcqa:
      split: {"1.0": 80, "2.0": 20}
      sticky: x-user-id
      experiment: choices-v2
      shadow: {"3.0": 10}
      fallback: ["1.0", stale]
      timeout_s: 30

A model without one is answered by its default version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from marctl.core.errors import UserError
from marctl.core.faults import listed, pointer, schema_faults
from marctl.core.yaml_text import YamlInvalid, read_yaml

HEADER = "^[a-z0-9-]+$"
STALE = "stale"
"""May end a fallback list: the answer that the routed version gave to the same request before."""
Served = Mapping[str, Collection[str]]
"""Model to its registered versions."""


class TrafficInvalid(UserError):
    """A traffic policy has faults; the text lists all of them."""


class Traffic(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model's traffic. Versions are strings: YAML reads a bare 1.10 as the number 1.1."""

    split: Annotated[dict[str, Annotated[float, Meta(ge=0, le=1_000_000)]], Meta(min_length=1)]
    """Version to weight; only their proportion matters."""
    sticky: Annotated[str, Meta(pattern=HEADER)] = "x-user-id"
    """Requests with the same value of this header get the same version; those without it are drawn one by one."""
    experiment: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]*$", max_length=64)] = ""
    """Experiment name; changing it reassigns every user, keeping it keeps them through any change of weights."""
    shadow: dict[str, Annotated[float, Meta(gt=0, le=100)]] = {}
    """Version to the percentage of requests that it gets a copy of; the client never waits for it."""
    fallback: list[str] = []
    """Who answers, in this order, when the routed version fails: versions, and `stale` at the end."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """For the whole request, fallback included."""

    @property
    def versions(self) -> set[str]:
        """All versions that the policy needs."""
        return {v for v, weight in self.split.items() if weight > 0} | {*self.shadow, *self.stand_ins}

    def share(self, version: str) -> float:
        """Of the requests that name no version, in percent; while another version is away, more."""
        return round(100 * self.split.get(version, 0.0) / (sum(self.split.values()) or 1.0), 2)

    @property
    def stand_ins(self) -> list[str]:
        """The versions of the fallback list."""
        return [fallback for fallback in self.fallback if fallback != STALE]

    def fallbacks_after(self, version: str) -> list[str]:
        """Who stands in for a version: the whole list, or what follows that version if it is in the list itself."""
        start = self.fallback.index(version) + 1 if version in self.fallback else 0
        return self.fallback[start:]

    def without(self, version: str) -> Traffic | None:
        """The policy after a version has gone; None if nobody is left to answer."""
        split = {v: weight for v, weight in self.split.items() if v != version}
        if not any(split.values()):
            return None
        shadow = {v: percent for v, percent in self.shadow.items() if v != version}
        fallback = [v for v in self.fallback if v != version]
        return msgspec.structs.replace(self, split=split, shadow=shadow, fallback=fallback)


def default_traffic(version: str) -> Traffic:
    """What holds for a model that has no policy."""
    return Traffic(split={version: 100})


def parse(text: str, origin: str, served: Served) -> dict[str, Traffic]:
    """Documents by model, checked; raises TrafficInvalid listing every fault with its place and cure."""
    try:
        content = read_yaml(text)
    except YamlInvalid as err:
        raise TrafficInvalid(f"{origin}: {err}") from err
    faults = key_faults(content) or schema_faults(traffic_schema(), content)
    policies = {} if faults else msgspec.convert(content, dict[str, Traffic])
    for model, policy in policies.items():
        faults += meaning_faults(model, policy, served)
    refuse(origin, faults)
    return policies


def check(model: str, policy: Traffic, served: Served) -> None:
    """Raise TrafficInvalid if a policy that was put together does not hold."""
    content = {model: msgspec.to_builtins(policy)}
    refuse(
        f"the new traffic of {model}",
        schema_faults(traffic_schema(), content) or meaning_faults(model, policy, served),
    )


def refuse(origin: str, faults: list[str]) -> None:
    if faults:
        raise TrafficInvalid(listed(origin, faults))


def key_faults(content: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Keys that YAML did not read as strings."""
    if not isinstance(content, dict):
        return []
    faults = [
        f'{pointer((*path, str(key)))}: YAML reads this key as {type(key).__name__}; write "{key}" with quotes'
        for key in content
        if not isinstance(key, str)
    ]
    return faults + [fault for key, value in content.items() for fault in key_faults(value, (*path, str(key)))]


def traffic_schema() -> dict[str, Any]:
    """JSON Schema of policies by model."""
    return msgspec.json.schema(Annotated[dict[str, Traffic], Meta(min_length=1)])


def meaning_faults(model: str, policy: Traffic, served: Served) -> list[str]:
    """What the schema can't see: versions that are not there, shares of nothing, fallbacks that come twice."""
    if model not in served:
        return [f"{model}: no such model is served; there are: {', '.join(sorted(served)) or 'none'}"]
    there = sorted(served[model])
    faults = [
        f"{model}.{field}: version {version} is not served; there are: {', '.join(there)}"
        for field, versions in (
            ("split", policy.split),
            ("shadow", policy.shadow),
            ("fallback", policy.stand_ins),
        )
        for version in versions
        if version not in there
    ]
    if STALE in policy.fallback and policy.fallback[-1] != STALE:
        faults.append(f"{model}.fallback: {STALE} must be the last entry; there is nothing to try after it")
    if STALE in policy.fallback and len(there) < 2:
        faults.append(
            f"{model}.fallback: {STALE} is answered by a worker of another version, and {there[0]} is the only one"
        )
    if not any(policy.split.values()):
        faults.append(f"{model}.split: all weights are 0; nobody would answer")
    faults += [
        f"{model}.fallback: version {version} stands there more than once"
        for version in dict.fromkeys(policy.fallback)
        if policy.fallback.count(version) > 1
    ]
    return faults


def place(policy: Traffic, version: str) -> str:
    """What a version does in a policy, for a message."""
    parts = [f"weight {policy.split[version]:g}"] if policy.split.get(version) else []
    parts += ["a shadow's copies"] if version in policy.shadow else []
    parts += ["a fallback of the fallback list"] if version in policy.fallback else []
    return " and ".join(parts)


def cures(model: str, policy: Traffic, version: str) -> list[str]:
    """The commands that take a version out of a policy, each for one of its places there."""
    found = []
    if policy.split.get(version):
        others = {v: weight for v, weight in policy.split.items() if weight and v != version}
        weights = " ".join(f"{v}={weight:g}" for v, weight in others.items()) or "VERSION=100"
        found.append(f"marctl route split {model} {weights}")
    if version in policy.shadow:
        rest = " ".join(f"{v}={percent:g}" for v, percent in policy.shadow.items() if v != version)
        found.append(f"marctl route shadow {model} {rest or '--off'}")
    if version in policy.fallback:
        rest = " ".join(v for v in policy.fallback if v != version)
        found.append(f"marctl route fallback {model} {rest or '--off'}")
    return found


def dump(policies: Mapping[str, Traffic]) -> str:
    """The YAML form, which `parse` reads."""
    return yaml.safe_dump(whole(msgspec.to_builtins(dict(policies))), sort_keys=False, allow_unicode=True, width=120)


def whole(content: Any) -> Any:
    """The same with 80 for 80.0, as people write it."""
    if isinstance(content, dict):
        return {key: whole(value) for key, value in content.items()}
    return int(content) if isinstance(content, float) and content.is_integer() else content


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise TrafficInvalid(f"{path}: cannot be read: {err}") from err
