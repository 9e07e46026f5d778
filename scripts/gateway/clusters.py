"""Envoy's clusters: one per model version, so that each has its own figures, limits and stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from scripts.core.explainers import is_explainer
from scripts.gateway.names import (
    FALLBACK,
    Json,
    cluster,
    endpoint,
    extension,
    shadow_cluster,
    socket_address,
    stat_name,
    typed,
)
from scripts.gateway.policies import Served
from scripts.gateway.settings import GatewaySettings

CONNECT_TIMEOUT_S = 1
SHADOW_REQUESTS = 128
"""Copies under way at once; a shadow that hangs holds no more than these."""


def version_clusters(served: Served, torchserve: str, settings: GatewaySettings, translate: str) -> list[Json]:
    """All of them; `torchserve` is the URL of its inference port, `translate` the Lua that mends its errors."""
    return [
        made
        for model in sorted(served)
        for version in sorted(served[model])
        for made in (explains if is_explainer(model) else of_version)(model, version, torchserve, settings, translate)
    ]


def of_version(model: str, version: str, torchserve: str, settings: GatewaySettings, translate: str) -> Iterator[Json]:
    """A version as it answers clients, with the fallback as its second priority, and as it answers copies."""
    hosts = [torchserve, *(f"http://{address}" for address in settings.upstreams)]
    server = {"priority": 0, "lb_endpoints": [endpoint(address_of(host)) for host in hosts]}
    stand_in = {"priority": 1, "lb_endpoints": [endpoint(fallback_address())]}
    yield {
        **base(cluster(model, version), [server, stand_in]),
        "circuit_breakers": thresholds(settings.requests_per_version),
        "typed_extension_protocol_options": upstream_filters(translate),
        **(ejection() if len(hosts) > 1 else {}),
    }
    yield {
        **base(shadow_cluster(model, version), [server]),
        "circuit_breakers": thresholds(SHADOW_REQUESTS),
    }


def explains(model: str, version: str, torchserve: str, settings: GatewaySettings, translate: str) -> Iterator[Json]:
    """The workers that explain a version. Their queue's limit is TorchServe's; nobody stands in for them."""
    hosts = [torchserve, *(f"http://{address}" for address in settings.upstreams)]
    yield {
        **base(cluster(model, version), [{"lb_endpoints": [endpoint(address_of(host)) for host in hosts]}]),
        "circuit_breakers": thresholds(settings.requests_per_version),
        "typed_extension_protocol_options": upstream_filters(translate),
    }


def base(name: str, localities: list[Json]) -> Json:
    return {
        "name": name,
        "alt_stat_name": stat_name(name),
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        # The second priority is for what the first one failed, never for its load: as long as one server is well,
        # it takes all. (140 is the default: with half of the servers gone, 30 % would go to the second.)
        "load_assignment": {
            "cluster_name": name,
            "endpoints": localities,
            "policy": {"overprovisioning_factor": 100_000},
        },
    }


def plain_cluster(name: str, url: str) -> Json:
    """A server without versions."""
    return base(name, [{"lb_endpoints": [endpoint(address_of(url))]}])


def fallback_cluster() -> Json:
    return base(FALLBACK, [{"lb_endpoints": [endpoint(fallback_address())]}])


def address_of(url: str) -> Json:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket_address(parts.hostname, parts.port)


def fallback_address() -> Json:
    """A listener inside Envoy: no port, nobody else can reach it."""
    return {"envoy_internal_address": {"server_listener_name": FALLBACK}}


def thresholds(requests: int) -> Json:
    """So many at once, each on a connection of its own.

    There may be more connections than requests, or those above the limit would wait for one instead of being refused.
    `max_retries` is 3 if left out: the fourth fallback at a time would be refused.
    """
    names = ("max_pending_requests", "max_requests", "max_retries")
    limits = {"max_connections": 2 * requests, **dict.fromkeys(names, requests)}
    return {"thresholds": [limits]}


def ejection() -> Json:
    """A server that fails five times in a row for a version is left alone for that version, half a minute at first.

    For one server alone this would turn some failures into nothing but failures.
    """
    return {"outlier_detection": {"consecutive_5xx": 5, "base_ejection_time": "30s", "max_ejection_percent": 50}}


def upstream_filters(lua: str) -> Json:
    """Lua on each answer of TorchServe, before Envoy decides whether it is a failure."""
    kind = "envoy.extensions.filters.http"
    filters = [
        extension("envoy.filters.http.lua", f"{kind}.lua.v3.Lua", default_source_code={"inline_string": lua}),
        extension("envoy.filters.http.upstream_codec", f"{kind}.upstream_codec.v3.UpstreamCodec"),
    ]
    options = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http_protocol_options": {}},
        http_filters=filters,
    )
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
