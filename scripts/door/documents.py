"""Traffic documents: which versions of a model answer, in what shares, who listens along and who stands in.

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

from scripts.errors import UserError
from scripts.faults import listed, pointer, schema_faults

HEADER = "^[a-z0-9-]+$"
STALE = "stale"
"""The last rung of a ladder, if it is wanted: what the routed version answered to the same request before."""
Served = Mapping[str, Collection[str]]
"""Model to its registered versions."""


class TrafficInvalid(UserError):
    """A traffic document has faults; the text lists all of them."""


class Traffic(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model's traffic. Versions are strings: YAML reads a bare 1.10 as the number 1.1."""

    split: Annotated[dict[str, Annotated[float, Meta(ge=0, le=1_000_000)]], Meta(min_length=1)]
    """Version to weight; only their proportion matters."""
    sticky: Annotated[str, Meta(pattern=HEADER)] = "x-user-id"
    """Requests with the same value of this header get the same version; those without it are drawn one by one."""
    experiment: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]*$", max_length=64)] = ""
    """Salt of the draw: a new one deals all users anew, the same one keeps them through any change of weights."""
    shadow: dict[str, Annotated[float, Meta(gt=0, le=100)]] = {}
    """Version to the percentage of requests that it gets a copy of; the client never waits for it."""
    fallback: list[str] = []
    """Who answers, in this order, when the routed version fails: versions, and `stale` at the end."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """For the whole request, fallback included."""

    @property
    def versions(self) -> set[str]:
        """All versions that the document needs."""
        return {v for v, weight in self.split.items() if weight > 0} | {*self.shadow, *self.stand_ins}

    @property
    def stand_ins(self) -> list[str]:
        """The versions of the ladder."""
        return [rung for rung in self.fallback if rung != STALE]

    def rungs_after(self, version: str) -> list[str]:
        """Who stands in for a version: the ladder, or its part below that version if it is itself a rung."""
        start = self.fallback.index(version) + 1 if version in self.fallback else 0
        return self.fallback[start:]

    def without(self, version: str) -> Traffic | None:
        """The document after a version has gone; None if nobody is left to answer."""
        split = {v: weight for v, weight in self.split.items() if v != version}
        if not any(split.values()):
            return None
        shadow = {v: percent for v, percent in self.shadow.items() if v != version}
        fallback = [v for v in self.fallback if v != version]
        return msgspec.structs.replace(self, split=split, shadow=shadow, fallback=fallback)


def default_traffic(version: str) -> Traffic:
    """What holds for a model that has no document."""
    return Traffic(split={version: 100})


def parse(text: str, origin: str, served: Served) -> dict[str, Traffic]:
    """Documents by model, checked; raises TrafficInvalid listing every fault with its place and cure."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise TrafficInvalid(f"{origin}: not YAML: {' '.join(str(err).split())}") from err
    faults = key_faults(content) or schema_faults(traffic_schema(), content)
    documents = {} if faults else msgspec.convert(content, dict[str, Traffic])
    for model, document in documents.items():
        faults += meaning_faults(model, document, served)
    refuse(origin, faults)
    return documents


def check(model: str, document: Traffic, served: Served) -> None:
    """Raise TrafficInvalid if a document that was put together does not hold."""
    content = {model: msgspec.to_builtins(document)}
    refuse(
        f"the new traffic of {model}",
        schema_faults(traffic_schema(), content) or meaning_faults(model, document, served),
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
    """JSON Schema of documents by model."""
    return msgspec.json.schema(Annotated[dict[str, Traffic], Meta(min_length=1)])


def meaning_faults(model: str, document: Traffic, served: Served) -> list[str]:
    """What the schema can't see: versions that are not there, shares of nothing, rungs that come twice."""
    if model not in served:
        return [f"{model}: no such model is served; there are: {', '.join(sorted(served)) or 'none'}"]
    there = sorted(served[model])
    faults = [
        f"{model}.{field}: version {version} is not served; there are: {', '.join(there)}"
        for field, versions in (
            ("split", document.split),
            ("shadow", document.shadow),
            ("fallback", document.stand_ins),
        )
        for version in versions
        if version not in there
    ]
    if STALE in document.fallback and document.fallback[-1] != STALE:
        faults.append(f"{model}.fallback: {STALE} is the last rung or none; there is nothing to try after it")
    if STALE in document.fallback and len(there) < 2:
        faults.append(
            f"{model}.fallback: {STALE} is answered by a worker of another version, and {there[0]} is the only one"
        )
    if not any(document.split.values()):
        faults.append(f"{model}.split: all weights are 0; nobody would answer")
    faults += [
        f"{model}.fallback: version {version} stands there more than once"
        for version in dict.fromkeys(document.fallback)
        if document.fallback.count(version) > 1
    ]
    return faults


def dump(documents: Mapping[str, Traffic]) -> str:
    """The YAML form, which `parse` reads."""
    return yaml.safe_dump(whole(msgspec.to_builtins(dict(documents))), sort_keys=False, allow_unicode=True, width=120)


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
