"""The routes of the Open Inference Protocol, over HTTP and gRPC, and of TorchServe's gRPC service.

A gRPC call becomes an HTTP request in Envoy's grpc_json_reverse_transcoder, as the files in `grpc/` say: the message
becomes JSON, the model and version in it become the path. From there on it is one more request, with the same split,
fallback, shadows and limits. handlers/protocols/open_inference.py reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from scripts.core.explainers import models_in
from scripts.core.order import version_order
from scripts.gateway.names import FALLBACK, HTTP_STATUS_HEADER, PROTOCOL_HEADER, Json, Role, typed
from scripts.gateway.policies import Served, Traffic
from scripts.gateway.routes import (
    answer,
    label,
    open_to_all,
    pinned,
    readiness,
    ready,
    to_split,
    to_version,
    with_headers,
    with_weight,
)

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
NOT_FOUND = 5
"""gRPC's code; Envoy would make UNIMPLEMENTED of a 404."""
SERVER = {"name": "torchserve-marctl", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
STATUS = label(HTTP_STATUS_HEADER, "%RESP(:status)%")


@dataclass(frozen=True)
class Call:
    """A request that a worker answers: the form it has, and where it arrives with a version and without one."""

    protocol: str
    with_version: str
    without: str

    @property
    def predicts(self) -> bool:
        return self.protocol != "open-metadata"

    def of(self, route: Json) -> Json:
        """The route with what tells the worker the request's form, and Envoy the answer's."""
        formed = with_headers(route, [label(PROTOCOL_HEADER, self.protocol, overwrite=True)])
        if not self.without.startswith(GRPC):
            return formed
        return formed | {"response_headers_to_add": [*formed.get("response_headers_to_add", []), STATUS]}


# A version that is left out of a message leaves its place in the path empty.
CALLS = (
    Call("open", "/v2/models/{model}/versions/{version}/infer", "/v2/models/{model}/infer"),
    Call("open-metadata", "/v2/models/{model}/versions/{version}", "/v2/models/{model}"),
    Call("open-grpc", "/grpc/v2/models/{model}/versions/{version}/infer", "/grpc/v2/models/{model}/versions//infer"),
    Call("open-metadata", "/grpc/v2/models/{model}/versions/{version}", "/grpc/v2/models/{model}/versions/"),
    Call("torchserve-grpc", "/grpc/predictions/{model}/{version}", "/grpc/predictions/{model}/"),
)


def routes(served: Served, policies: Mapping[str, Traffic]) -> list[Json]:
    """The open listener's, in the order in which they must be tried."""
    found = [*server_routes(served, policies)]
    for model in models_in(served):
        found += readiness_routes(model, served, policies[model])
        found += call_routes(model, served, policies[model])
    return [*found, *left_over(served), *grpc_entries()]


def inner_routes(served: Served, policies: Mapping[str, Traffic]) -> list[Json]:
    """The inner listener's: what Envoy itself answers over gRPC.

    What the open listener makes itself it would send as a gRPC error, whatever it says.
    """
    everything = routed(served, policies)
    found = [
        {"match": {"path": f"{GRPC}{OPEN}"}, **answer(200, SERVER)},
        {"match": {"path": f"{GRPC}{OPEN}/health/live"}, **answer(200, {"live": True})},
        {"match": {"path": f"{GRPC}{OPEN}/health/ready"}, **ready(everything, {"ready": True}, {"ready": False}, 200)},
        {"match": {"path": f"{GRPC}/ping"}, **ready(everything, {"health": "Healthy"}, {"health": "Unhealthy"}, 200)},
    ]
    for model in models_in(served):
        asked = {v: [f"{model}/{v}"] for v in sorted(served[model])} | {"": with_weight(model, served, policies[model])}
        for version, versions in asked.items():
            path = f"{GRPC}{OPEN}/models/{model}/versions/{version}/ready"
            found.append({"match": {"path": path}, **ready(versions, {"ready": True}, {"ready": False}, 200)})
    return [*found, {"match": READY_OVER_GRPC, **answer(200, {"ready": False})}]


READY_OVER_GRPC = {"safe_regex": {"regex": f"^{GRPC}{OPEN}/models/.*/ready$"}}


def server_routes(served: Served, policies: Mapping[str, Traffic]) -> Iterator[Json]:
    """What is asked of the server as a whole."""
    yield {"match": {"path": OPEN}, **answer(200, SERVER)}
    yield probe(f"{OPEN}/health/live", answer(200, {"live": True}))
    yield probe(f"{OPEN}/health/ready", readiness(routed(served, policies), {}))
    inside = {"route": {"cluster": FALLBACK}, "response_headers_to_add": [STATUS]}
    for path in (f"{GRPC}{OPEN}", f"{GRPC}{OPEN}/health/live", f"{GRPC}{OPEN}/health/ready", f"{GRPC}/ping"):
        yield {"match": {"path": path}, **inside}
    yield {"match": READY_OVER_GRPC, **inside}


def routed(served: Served, policies: Mapping[str, Traffic]) -> list[str]:
    return [name for model in models_in(served) for name in with_weight(model, served, policies[model])]


def probe(path: str, action: Json) -> Json:
    filters = action.get("typed_per_filter_config", {}) | open_to_all()
    return {"match": {"path": path}, **action, "typed_per_filter_config": filters}


def call_routes(model: str, served: Served, policy: Traffic) -> Iterator[Json]:
    """Everything that a worker of the model answers: pinned by path, pinned by header, split."""
    for call in CALLS:
        by_name, by_weight = (Role.PINNED, Role.SPLIT) if call.predicts else (Role.OTHER, Role.OTHER)
        to_versions = {v: call.of(to_version("predictions", model, v, policy, by_name)) for v in served[model]}
        missing = refusal(
            call.without, "no_such_version", f"no such version of {model}; served: {names(served[model])}"
        )
        for version in sorted(served[model]):
            path = call.with_version.format(model=model, version=version)
            yield {"match": {"path": path}, **to_versions[version]}
        match = {"path": call.without.format(model=model)}
        for version in sorted(served[model]):
            yield {"match": pinned(match, {"string_match": {"exact": version}}), **to_versions[version]}
        yield {"match": pinned(match, {"present_match": True}), **missing}
        yield {"match": match, **call.of(to_split("predictions", model, policy, by_weight))}


def readiness_routes(model: str, served: Served, policy: Traffic) -> Iterator[Json]:
    for version in sorted(served[model]):
        path = f"{OPEN}/models/{model}/versions/{version}/ready"
        yield {"match": {"path": path}, **readiness([f"{model}/{version}"], {"name": model})}
    path = f"{OPEN}/models/{model}/ready"
    yield {"match": {"path": path}, **readiness(with_weight(model, served, policy), {"name": model})}


def left_over(served: Served) -> Iterator[Json]:
    """Models and versions that are not there."""
    for model in models_in(served):
        detail = f"no such version of {model}; served: {names(served[model])}"
        for path in (f"{OPEN}/models/{model}/", f"{GRPC}{OPEN}/models/{model}/", f"{GRPC}/predictions/{model}/"):
            yield {"match": {"prefix": path}, **refusal(path, "no_such_version", detail)}
    detail = f"no such model; served: {', '.join(models_in(served)) or 'none'}"
    for path in (f"{OPEN}/models/", f"{GRPC}{OPEN}/models/", f"{GRPC}/predictions/"):
        yield {"match": {"prefix": path}, **refusal(path, "no_such_model", detail)}


def names(there: Collection[str]) -> str:
    return ", ".join(sorted(there, key=version_order))


def refusal(path: str, error: str, detail: str) -> Json:
    """A 404 as the protocol tells errors: one text."""
    text = f"{error}: {detail}"
    if not path.startswith(GRPC):
        return answer(404, {"error": text})
    plain = {"direct_response": {"status": 404, "body": {"inline_string": text}}}
    return plain | {"response_headers_to_add": [label("grpc-status", str(NOT_FOUND))]}


def grpc_entries() -> Iterator[Json]:
    """Where gRPC calls arrive. Two filters turn them into HTTP and back; what their paths become is looked up anew."""
    on = typed("envoy.config.route.v3.FilterConfig", config={}, disabled=False)
    filters = {"envoy.filters.http.grpc_json_reverse_transcoder": on, "envoy.filters.http.lua.grpc": on}
    for method in METHODS:
        guards = open_to_all() if method in PROBES else {}
        yield {"match": {"path": f"/{method}"}, **NOT_GRPC, "typed_per_filter_config": filters | guards}


NOT_GRPC = answer(404, {"error": "no_such_path", "detail": "this path takes gRPC calls only"})
