"""Envoy's clusters: one per model version, which limits what is under way to it and leaves it alone while it is silent.

Whether a version has a worker is not their matter (scripts/gateway/health.py), so that they change only with versions
and policies. One that nobody asks costs Envoy some kilobytes: it makes the rest of it with the first request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from urllib.parse import urlsplit

from marctl.gateway.names import (
    FALLBACK,
    NO_WORKER,
    Json,
    cluster,
    extension,
    guarded_cluster,
    shadow_cluster,
    socket_address,
    typed,
)
from marctl.gateway.policies import Served, Traffic
from marctl.gateway.settings import GatewaySettings

CONNECT_TIMEOUT_S = 1
SHADOW_REQUESTS = 128
"""Copies under way at once; a shadow that hangs holds no more than these."""
INNER_REQUESTS = 1 << 16
"""Under way at once to one of Envoy's own listeners; what they lead to has limits of its own."""
TIMEOUTS_IN_A_ROW = 5
"""So many requests without an answer, and none answered between them: nobody is there."""
EJECTED_S, EJECTED_AT_MOST_S = 5, 60
"""A version without answers is left alone for so long; longer each time, until it answers again."""
MOST_KEPT = 16_384
"""Versions whose clusters need not be made anew with each change."""
ELSEWHERE = "elsewhere"
"""Marks servers other than the stack's own."""
CONNECTING: Json = {
    "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
    # Where nobody is well, nobody is asked; by default Envoy would then ask everybody.
    "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
}
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def hosts_of(torchserve: str, settings: GatewaySettings) -> list[str]:
    """URLs of all servers of the versions; the first one is the stack's own."""
    return [torchserve, *(f"http://{address}" for address in settings.upstreams)]


def version_clusters(
    served: Served, policies: Mapping[str, Traffic], hosts: Sequence[str], settings: GatewaySettings
) -> list[Json]:
    """All that the policies need; `hosts` are the URLs of the servers of the versions."""
    found: list[Json] = []
    for model in sorted(served):
        policy = policies.get(model)
        guards, shadows = bool(policy and policy.fallback), policy.shadow if policy else {}
        for version in sorted(served[model]):
            found += of_version(model, version, guards, version in shadows, tuple(hosts), settings.requests_per_version)
    return found


@lru_cache(MOST_KEPT)
def of_version(
    model: str,
    version: str,
    guards: bool,
    shadows: bool,
    hosts: Sequence[str],
    requests: int,
) -> list[Json]:
    """A version by itself; with the fallback behind it, and for copies, where its model's policy says so.

    Kept, as nothing of it changes when only another version does.
    """
    name = cluster(model, version)
    shared = {"circuit_breakers": thresholds(requests), **signs_of_life(hosts)}
    made = [{**named(name, hosts), **shared, "outlier_detection": ejection(hosts)}]
    if guards:
        made.append({**guarded(guarded_cluster(model, version), name), **shared})
    if shadows:
        made.append({**named(shadow_cluster(model, version), hosts), "circuit_breakers": thresholds(SHADOW_REQUESTS)})
    return made


def named(name: str, hosts: Sequence[str]) -> Json:
    """The servers of a version. Only of the stack's own server, the first one, is it known whether it has a worker."""
    own, *others = hosts
    servers = [endpoint(address_of(own)), *(marked(endpoint(address_of(host))) for host in others)]
    made = {
        "name": name,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": servers}],
            # The fallback is for what the servers failed, never for their load: as long as one server is well, the
            # servers take all. (140 is the default: with half of the servers gone, 30 % would go to the fallback.)
            "policy": {"overprovisioning_factor": 100_000},
        },
        **CONNECTING,
    }
    if others:
        made["lb_subset_config"] = {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": [ELSEWHERE]}]}
    return made


def marked(server: Json) -> Json:
    """A server that is asked for a version of which the stack's own has no worker."""
    return server | {"metadata": {"filter_metadata": {"envoy.lb": {ELSEWHERE: True}}}}


def guarded(name: str, inner: str) -> Json:
    """A version's cluster, and the fallback listener for what it failed."""
    kind = "envoy.extensions.clusters.aggregate.v3.ClusterConfig"
    return {
        "name": name,
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": extension("envoy.clusters.aggregate", kind, clusters=[inner, FALLBACK]),
        **CONNECTING,
    }


def plain_cluster(name: str, address: Json, requests: int = INNER_REQUESTS) -> Json:
    """A server without versions; `requests` may be under way to it at once."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint(address)]}]},
        "circuit_breakers": thresholds(requests),
    }


def no_worker_cluster() -> Json:
    """Nobody: a request that is sent here is refused, as one for which no server is well."""
    return {"name": NO_WORKER, "type": "STATIC", **CONNECTING}


def fallback_cluster() -> Json:
    """A listener inside Envoy: no port, nobody else can reach it."""
    return plain_cluster(FALLBACK, {"envoy_internal_address": {"server_listener_name": FALLBACK}})


def endpoint(address: Json) -> Json:
    return {"endpoint": {"address": address}}


@cache
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
    """Who gives no answers is left alone for a while, whether or not anybody watches over the workers.

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


def signs_of_life(hosts: Sequence[str]) -> Json:
    """For `ejection`, every answer of a single server is one, a full queue's 503 included."""
    if len(hosts) > 1:
        return {}
    no_answer_at_all = {"headers": [{"name": ":status", "present_match": False}]}
    options = typed(
        HTTP_OPTIONS,
        explicit_http_config={"http_protocol_options": {}},
        outlier_detection={"error_matcher": {"http_response_headers_match": no_answer_at_all}},
    )
    return {"typed_extension_protocol_options": {HTTP_OPTIONS: options}}
