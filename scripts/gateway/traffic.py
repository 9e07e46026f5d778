"""The table that resolve.lua looks models up in: one line for each, so that a change touches no route of Envoy's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from marctl.core.explainers import explainer_of, models_in
from marctl.core.order import version_order
from marctl.gateway import openapi
from marctl.gateway.names import RESOLVE, Json, extension, typed
from marctl.gateway.policies import Served, Traffic

MAIN_MODEL = "mcqa"
"""Who answers `/predict` when the body names no model."""
TOTAL_WEIGHT = 10_000
EXPLAIN_TIMEOUT_S = 60.0
"""At least: explanations may compute for longer than a prediction may take."""
LUA = "envoy.extensions.filters.http.lua.v3.Lua"


Addresses = Mapping[tuple[str, str], str]
"""Where in the server a version is, by the name and version that it would be registered under: for those that are in a
shared worker."""
NO_ADDRESSES: Addresses = MappingProxyType({})


def resolver(served: Served, policies: Mapping[str, Traffic], addresses: Addresses = NO_ADDRESSES) -> Json:
    """The filter that finds each request's version; `policies` holds one for each served model."""
    lines = "".join(f"{line(model, served, policies[model], addresses)}\n" for model in models_in(served))
    code = f'local TRAFFIC = [[\n{lines}]]\nlocal MAIN_MODEL, EMBED_MODEL = "{MAIN_MODEL}", "{openapi.EMBED_MODEL}"\n'
    return lua_filter(RESOLVE, code + script())


@cache
def script() -> str:
    return (Path(__file__).parent / "resolve.lua").read_text()


def lua_filter(name: str, code: str) -> Json:
    """An HTTP filter that Envoy takes from a watched file."""
    lua = extension(name, LUA, default_source_code={"inline_string": code})
    return typed("envoy.config.core.v3.TypedExtensionConfig", **lua)


def line(model: str, served: Served, policy: Traffic, addresses: Addresses = NO_ADDRESSES) -> str:
    """One model's traffic. A name has no character of the line's own: those are written as %XX."""
    fields = {
        "versions": names(sorted(served[model], key=version_order)),
        "explainers": names(sorted(served.get(explainer_of(model), ()))),
        "split": numbers(ranges(policy.split)),
        "sticky": policy.sticky,
        "experiment": policy.experiment,
        "shadow": numbers((version, round(percent * 10_000)) for version, percent in policy.shadow.items()),
        "fallback": names(policy.fallback),
        "timeout_ms": f"{policy.timeout_s * 1000:.0f}",
        "explain_ms": f"{max(policy.timeout_s, EXPLAIN_TIMEOUT_S) * 1000:.0f}",
        "labels": name(takes_labels(policy)),
        "keepers": names(keepers(served[model], policy)),
    }
    for field, workers in (("at", model), ("explains_at", explainer_of(model))):
        found = ((v, addresses.get((workers, v))) for v in sorted(served.get(workers, ()), key=version_order))
        if shared := ",".join(f"{name(version)}:{name(there)}" for version, there in found if there):
            fields[field] = shared
    return " ".join([name(model), *(f"{key}={value}" for key, value in fields.items())])


@cache
def name(text: str) -> str:
    return quote(text, safe="")


def names(texts: Iterable[str]) -> str:
    return ",".join(name(text) for text in texts)


def numbers(pairs: Iterable[tuple[str, int]]) -> str:
    return ",".join(f"{name(version)}:{number}" for version, number in pairs)


def ranges(split: Mapping[str, float]) -> list[tuple[str, int]]:
    """Weights out of 10,000, newest version first.

    They are laid side by side in this order, and the version is where the hash, modulo their sum, falls. With a
    constant sum and the newest version at the beginning, all that a growing newest version had stays inside its range.
    """
    versions = sorted((v for v, weight in split.items() if weight > 0), key=version_order, reverse=True)
    total = sum(split[version] for version in versions)
    ends = [0, *(round(end / total * TOTAL_WEIGHT) for end in accumulate(split[version] for version in versions))]
    return [(v, end - start) for v, (start, end) in zip(versions, pairwise(ends), strict=True) if end > start]


def takes_labels(policy: Traffic) -> str:
    """The version whose workers take true labels: the one with the most traffic."""
    return max(policy.split, key=lambda version: (policy.split[version], version_order(version)))


def keepers(versions: Iterable[str], policy: Traffic) -> list[str]:
    """Two versions whose workers look up another one's last known answer, those first that have the least to do."""
    used = {*policy.split, *policy.fallback}
    return sorted(versions, key=lambda v: (v not in used, version_order(v)), reverse=True)[:2]


def with_weight(model: str, served: Served, policy: Traffic) -> Iterator[str]:
    """`model/version` of those that the split may choose."""
    return (f"{model}/{v}" for v in sorted(served[model], key=version_order) if policy.split.get(v))
