"""Names that the parts of Envoy's configuration call each other by."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

GATEWAY, FALLBACK = "gateway", "fallback"
"""The open listener, and the one inside Envoy that a failed or copied request goes through."""
TORCHSERVE, MANAGEMENT, METRICS, ADMIN = "torchserve", "management", "metrics", "admin"
"""Clusters that every gateway has: TorchServe's three ports, and Envoy's own figures."""
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
BODY_MODEL = "model"
"""Where json_to_metadata puts the body's `model`."""


def cluster(model: str, version: str) -> str:
    return f"{model}|{version}"


def shadow_cluster(model: str, version: str) -> str:
    return f"{model}|{version}|shadow"


def stat_name(cluster_name: str) -> str:
    """A cluster's name in Envoy's figures, where a dot would end it."""
    return cluster_name.replace(".", "_")


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
