"""Envoy's clusters: one per model version, one with the fallback behind it, and one for its shadow's copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from scripts.core.explainers import SUFFIX, is_explainer
from scripts.gateway.names import (
    FALLBACK,
    Json,
    cluster,
    counted,
    endpoints_file,
    extension,
    guarded_cluster,
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
INNER_REQUESTS = 1 << 16
"""Under way at once to one of Envoy's own listeners; what they lead to has limits of its own."""
TIMEOUTS_IN_A_ROW = 5
"""So many requests without an answer, and none answered between them: nobody is there."""
EJECTED_S, EJECTED_AT_MOST_S = 5, 60
"""A version without answers is left alone for so long; longer each time, until it answers again."""
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def hosts_of(torchserve: str, settings: GatewaySettings) -> list[str]:
    """URLs of all servers of the versions; the first one is the stack's own."""
    return [torchserve, *(f"http://{address}" for address in settings.upstreams)]


def version_clusters(
    served: Served, torchserve: str, settings: GatewaySettings, translate: str, endpoints: Path
) -> list[Json]:
    """All of them.

    `torchserve`: the URL of its inference port; `translate`: the Lua that mends its errors; `endpoints`: the folder of
    the files that say which version has a worker.
    """
    hosts = hosts_of(torchserve, settings)
    return [
        made
        for model in sorted(served)
        for version in sorted(served[model])
        for made in of_version(model, version, hosts, settings, translate, endpoints)
    ]


def of_version(
    model: str, version: str, hosts: Sequence[str], settings: GatewaySettings, translate: str, endpoints: Path
) -> Iterator[Json]:
    """A version by itself; unless it explains, also with the fallback behind it, and for copies."""
    name = cluster(model, version)
    shared = {
        "circuit_breakers": thresholds(settings.requests_per_version),
        "typed_extension_protocol_options": upstream_options(translate, only_silence_fails=len(hosts) == 1),
    }
    yield {**watching(name, model, version, endpoints), **shared, "outlier_detection": ejection(hosts)}
    if is_explainer(model):
        return
    yield {
        **named(guarded_cluster(model, version), model, version),
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": extension(
            "envoy.clusters.aggregate",
            "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
            clusters=[name, FALLBACK],
        ),
        **shared,
    }
    yield {
        **watching(shadow_cluster(model, version), model, version, endpoints),
        "circuit_breakers": thresholds(SHADOW_REQUESTS),
    }


def named(name: str, model: str, version: str) -> Json:
    """What all clusters of a version have in common."""
    return {
        "name": name,
        "alt_stat_name": stat_name(name),
        "metadata": counted(model=model.removesuffix(SUFFIX), version=version),
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        # Where nobody is well, nobody is asked; by default Envoy would then ask everybody.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def watching(name: str, model: str, version: str, endpoints: Path) -> Json:
    """A cluster whose servers, and whether they have a worker for the version, stand in the version's file."""
    source = {"path_config_source": {"path": str(endpoints / endpoints_file(model, version))}}
    return {
        **named(name, model, version),
        "type": "EDS",
        "lb_policy": "LEAST_REQUEST",
        "eds_cluster_config": {
            "service_name": cluster(model, version),
            "eds_config": {"resource_api_version": "V3", **source},
        },
    }


def assignment(model: str, version: str, hosts: Sequence[str], *, has_worker: bool) -> Json:
    """The content of a version's file. Only of the stack's own server, the first host, is it known who has workers."""
    health = ["HEALTHY" if has_worker else "UNHEALTHY", *["HEALTHY"] * (len(hosts) - 1)]
    servers = [
        endpoint(address_of(host)) | {"health_status": status} for host, status in zip(hosts, health, strict=True)
    ]
    return typed(
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        cluster_name=cluster(model, version),
        endpoints=[{"lb_endpoints": servers}],
        # The fallback is for what the servers failed, never for their load: as long as one server is well, the servers
        # take all. (140 is the default: with half of the servers gone, 30 % would go to the fallback.)
        policy={"overprovisioning_factor": 100_000},
    )


def plain_cluster(name: str, address: Json, requests: int = INNER_REQUESTS) -> Json:
    """A server without versions; `requests` may be under way to it at once."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint(address)]}]},
        "circuit_breakers": thresholds(requests),
    }


def fallback_cluster() -> Json:
    """A listener inside Envoy: no port, nobody else can reach it."""
    return plain_cluster(FALLBACK, {"envoy_internal_address": {"server_listener_name": FALLBACK}})


def endpoint(address: Json) -> Json:
    return {"endpoint": {"address": address}}


def address_of(url: str) -> Json:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket_address(parts.hostname, parts.port)


def thresholds(requests: int) -> Json:
    """So many at once, each on a connection of its own.

    There may be more connections than requests, or those above the limit would wait for one instead of being refused.
    `max_retries` is 3 if left out: the fourth fallback at a time would be refused.
    """
    names = ("max_pending_requests", "max_requests", "max_retries")
    limits = {"max_connections": 2 * requests, **dict.fromkeys(names, requests)}
    return {"thresholds": [limits]}


def ejection(hosts: Sequence[str]) -> Json:
    """Who gives no answers is left alone for a while, whether or not anybody keeps the version's file.

    Of several servers, one that answers with nothing but errors is, too. For a single one that would turn some
    failures into nothing but failures.
    """
    several = len(hosts) > 1
    return {
        "consecutive_gateway_failure": TIMEOUTS_IN_A_ROW,
        "enforcing_consecutive_gateway_failure": 100,
        "consecutive_5xx": 5,
        "enforcing_consecutive_5xx": 100 if several else 0,
        "enforcing_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": f"{EJECTED_S}s",
        "max_ejection_time": f"{EJECTED_AT_MOST_S}s",
        "max_ejection_percent": 50 if several else 100,
    }


def upstream_options(lua: str, *, only_silence_fails: bool) -> Json:
    """Lua on each answer of TorchServe, before Envoy decides whether it is a failure.

    `only_silence_fails`: for `ejection`, every answer is a sign of life, a full queue's 503 included.
    """
    kind = "envoy.extensions.filters.http"
    filters = [
        extension("envoy.filters.http.lua", f"{kind}.lua.v3.Lua", default_source_code={"inline_string": lua}),
        extension("envoy.filters.http.upstream_codec", f"{kind}.upstream_codec.v3.UpstreamCodec"),
    ]
    options = typed(HTTP_OPTIONS, explicit_http_config={"http_protocol_options": {}}, http_filters=filters)
    if only_silence_fails:
        no_answer_at_all = {"headers": [{"name": ":status", "present_match": False}]}
        options["outlier_detection"] = {"error_matcher": {"http_response_headers_match": no_answer_at_all}}
    return {HTTP_OPTIONS: options}
