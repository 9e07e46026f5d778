"""Names that the parts of Envoy's configuration call each other by."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]

GATEWAY, FALLBACK, PROBES = "gateway", "fallback", "probes"
"""The open listener, the one inside Envoy that a failed or copied request goes through, and the one for probes."""
WEB = "web"
"""The listener inside Envoy that has the files for a browser, and its cluster."""
MANAGEMENT, METRICS, ADMIN, NO_WORKER = "management", "metrics", "admin", "no-worker"
"""Clusters that every gateway has, beside FALLBACK and PROBES: two of TorchServe's ports, Envoy's own figures, and one
of no servers, where requests end for which no worker is there."""
RESOLVE, WORKERS = "resolve", "workers"
"""Filters: which version answers (resolve.lua), and what becomes of a request whose version has no worker."""
API_KEYS = "envoy.filters.http.api_key_auth"
"""The filter that asks for a key; routes that need none switch it off by this name."""
ORDERS = "x-gateway-"
"""Begins the headers by which those two filters tell Envoy how a request goes on; no client can send them."""
ROUTE_HEADER, CLUSTER_HEADER = "x-gateway-route", "x-gateway-cluster"
MODEL_HEADER, COUNTED_HEADER = "x-gateway-model", "x-gateway-version"
"""Whom a request is counted for."""
COPY_HEADER, COPIES_HEADER = "x-gateway-copy", "x-gateway-copies"
"""The cluster that gets a copy, if any, and the shadows that it is meant for."""
ANSWERED_HEADER = "x-gateway-fallback"
"""What the answer's FALLBACK_HEADER says."""
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
# TIMEOUT_HEADER, how long the gateway waits for a worker's answer, is marctl_handlers.core.messages': resolve.lua sets
# it to each attempt's own time, over whatever the client sent. A fallback's attempt carries the fallback's time.
BODY, BODY_MODEL = "gateway.body", "model"
"""Where json_to_metadata puts the body's `model`."""
COUNTED = "counted"
"""Where a route's metadata say in which role its requests are counted."""


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
    """The version, and the fallback listener where the version fails."""
    return f"{cluster(model, version)}|guarded"


def counted(**labels: str) -> Json:
    """Metadata of a route for marctl.gateway.counts."""
    return {"filter_metadata": {COUNTED: labels}}


def typed(kind: str, **content: Any) -> Json:
    """An Any message: `kind` without its common prefix."""
    return {"@type": f"type.googleapis.com/{kind}", **content}


def extension(name: str, kind: str, **content: Any) -> Json:
    """A named extension with its configuration."""
    return {"name": name, "typed_config": typed(kind, **content)}


def watched(files: Path, name: str) -> Json:
    """A file that is read again when another one is renamed into its place.

    With `watched_directory` every rename in the folder would have all files read again.
    """
    return {"resource_api_version": "V3", "path_config_source": {"path": str(files / name)}}


def seconds(value: float) -> str:
    return f"{value:.3f}s"


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def endpoint(address: Json) -> Json:
    return {"endpoint": {"address": address}}
