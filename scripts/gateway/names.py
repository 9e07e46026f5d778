"""Names that the parts of Envoy's configuration call each other by."""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]

GATEWAY, FALLBACK, PROBES = "gateway", "fallback", "probes"
"""The open listener, the one inside Envoy that a failed or copied request goes through, and the one for probes."""
MANAGEMENT, METRICS, ADMIN = "management", "metrics", "admin"
"""Clusters that every gateway has, beside FALLBACK and PROBES: two of TorchServe's ports, and Envoy's own figures."""
SHADOW_HEADER = "x-shadow-version"
VERSION_HEADER = "x-model-version"
FALLBACK_HEADER = "x-fallback"
FAILED_HEADER = "x-fallback-from"
"""On the request that a fallback gets: the version that failed it."""
PROTOCOL_HEADER = "x-inference-protocol"
"""On the request that a worker gets: the form of body and answer; handlers/protocols/open_inference.py knows them."""
HTTP_STATUS_HEADER = "x-http-status"
"""On an answer before it becomes gRPC's: its HTTP code, from which filters.lua makes gRPC's."""
STALE_HEADER = "x-fallback-stale"
"""On a request of which only the last known answer is wanted, that of the version which failed it first."""
# TIMEOUT_HEADER, how long the gateway waits for a worker's answer, is handlers.core.messages': routes.asked sets it to
# each attempt's own time, over whatever the client sent. A fallback's attempt carries the fallback's time.
BODY_MODEL = "model"
"""Where json_to_metadata puts the body's `model`."""
COUNTED = "counted"
"""Where a cluster's metadata say for which model and version its requests are counted, and a route's in which role.
A request's headers would let clients make names."""


class Role(StrEnum):
    """Why a version gets a request; attempts are counted by model, version and role."""

    SPLIT = "split"
    FALLBACK = "fallback"
    SHADOW = "shadow"
    PINNED = "pinned"
    EXPLAIN = "explain"
    OTHER = "other"
    """No prediction of the version's own: true labels, metadata, another version's last known answer."""


LIMIT = "envoy.filters.http.local_ratelimit"
"""Begins the names of the filters that hold a client to its rate: of requests, and of bytes."""


def cluster(model: str, version: str) -> str:
    """Different for each model and version: what could be taken for a separator is written as %XX."""
    return f"{quote(model, safe='')}|{quote(version, safe='')}"


def shadow_cluster(model: str, version: str) -> str:
    return f"{cluster(model, version)}|shadow"


def guarded_cluster(model: str, version: str) -> str:
    """The version, and the fallback listener where the version fails or has no worker."""
    return f"{cluster(model, version)}|guarded"


def endpoints_file(model: str, version: str) -> str:
    """The watched file that says whether the version has a worker; its folder is in `scripts.gateway.health`."""
    return f"{cluster(model, version)}.json"


def stat_name(cluster_name: str) -> str:
    """A cluster's name in Envoy's figures, where a dot would end it."""
    return cluster_name.replace(".", "%2E")


def counted(**labels: str) -> Json:
    """Metadata of a cluster or a route for scripts.gateway.counts."""
    return {"filter_metadata": {COUNTED: labels}}


def typed(kind: str, **content: Any) -> Json:
    """An Any message: `kind` without its common prefix."""
    return {"@type": f"type.googleapis.com/{kind}", **content}


def extension(name: str, kind: str, **content: Any) -> Json:
    """A named extension with its configuration."""
    return {"name": name, "typed_config": typed(kind, **content)}


def seconds(value: float) -> str:
    return f"{value:.3f}s"


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def endpoint(address: Json) -> Json:
    return {"endpoint": {"address": address}}
