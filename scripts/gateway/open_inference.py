"""The routes of the Open Inference Protocol, over HTTP and gRPC, and of TorchServe's gRPC service.

A gRPC call becomes an HTTP request in Envoy's grpc_json_reverse_transcoder, as the files in `grpc/` say: the message
becomes JSON, the model and version in it become the path. From there on it is one more request, with the same split,
fallback, shadows and limits. handlers/protocols/open_inference.py reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from marctl.gateway.names import Json
from marctl.gateway.routes import answer, open_to_all, readiness, ready, resolved, switched, ways

OPEN = "/v2"
GRPC = "/grpc"
"""Begins the paths that gRPC calls become."""
PROBES = (
    "inference.GRPCInferenceService/ServerLive",
    "inference.GRPCInferenceService/ServerReady",
    "org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping",
)
"""gRPC methods that need neither key nor limit."""
METHODS = (
    *PROBES,
    "inference.GRPCInferenceService/ModelReady",
    "inference.GRPCInferenceService/ServerMetadata",
    "inference.GRPCInferenceService/ModelMetadata",
    "inference.GRPCInferenceService/ModelInfer",
    "org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
    "org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions",
)
SERVER = {"name": "torchserve-marctl", "version": "0.1.0", "extensions": ["binary_tensor_data"]}


def routes() -> list[Json]:
    """The open listener's."""
    return [*server_routes(), *grpc_entries()]


def inner_routes() -> list[Json]:
    """The inner listener's: what Envoy itself answers over gRPC.

    What the open listener makes itself it would send as a gRPC error, whatever it says.
    """
    return [
        {"match": {"path": f"{GRPC}{OPEN}"}, **answer(200, SERVER)},
        {"match": {"path": f"{GRPC}{OPEN}/health/live"}, **answer(200, {"live": True})},
        {"match": {"path": f"{GRPC}{OPEN}/health/ready"}, **ready({"ready": True}, {"ready": False}, 200)},
        {"match": {"path": f"{GRPC}/ping"}, **ready({"health": "Healthy"}, {"health": "Unhealthy"}, 200)},
    ]


def server_routes() -> Iterator[Json]:
    """What is asked of the server as a whole."""
    yield {"match": {"path": OPEN}, **answer(200, SERVER)}
    yield probe(f"{OPEN}/health/live", answer(200, {"live": True}))
    yield probe(f"{OPEN}/health/ready", readiness())
    for path in (f"{GRPC}{OPEN}", f"{GRPC}{OPEN}/health/live", f"{GRPC}{OPEN}/health/ready", f"{GRPC}/ping"):
        yield {"match": {"path": path}, **ways()["inside"]}


def probe(path: str, action: Json) -> Json:
    filters = action.get("typed_per_filter_config", {}) | open_to_all()
    return {"match": {"path": path}, **action, "typed_per_filter_config": filters}


def grpc_entries() -> Iterator[Json]:
    """Where gRPC calls arrive. Two filters turn them into HTTP and back; what their paths become is looked up anew."""
    on = switched(on=True)
    filters = {"envoy.filters.http.grpc_json_reverse_transcoder": on, "envoy.filters.http.lua.grpc": on} | resolved()
    for method in METHODS:
        guards = open_to_all() if method in PROBES else {}
        yield {"match": {"path": f"/{method}"}, **NOT_GRPC, "typed_per_filter_config": filters | guards}


NOT_GRPC = answer(404, {"error": "no_such_path", "detail": "this path takes gRPC calls only"})
