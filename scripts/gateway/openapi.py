"""The gateway's HTTP surface as an OpenAPI 3.1 document, made from the types that decode requests and write answers.

Served at `/openapi.json`, with the models that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from handlers.core.messages import ErrorBody
from handlers.protocols.open_inference import JSON_LENGTH_HEADER, InferRequest, InferResponse, ModelMetadata
from handlers.redis.log import Feedback
from handlers.tasks.multiple_choice.explain.answer import ExplainedAnswer
from handlers.tasks.multiple_choice.explain.request import ExplainQuestion
from handlers.tasks.multiple_choice.schema import Answer, Question
from scripts.core.explainers import models_in
from scripts.core.order import version_order
from scripts.gateway.names import FALLBACK_HEADER, VERSION_HEADER, Json
from scripts.gateway.policies import Served

PATH = "/openapi.json"
JSON_TYPE, BINARY_TYPE, TEXT_TYPE = "application/json", "application/octet-stream", "text/plain"
HTML_TYPE = "text/html"
TYPES = (ErrorBody, Feedback, InferRequest, InferResponse, ModelMetadata)
PREDICTIONS, EXPLANATIONS, PROTOCOL, OPERATIONS = "predictions", "explanations", "open inference protocol", "operations"
"""Tags."""
ERRORS = {
    400: "The body is not JSON, or the request breaks HTTP's rules",
    401: "The gateway asks for a key, in the header x-api-key",
    404: "No such model, version or path",
    405: "The path takes another method, which the header allow names",
    408: "The request did not arrive in time",
    413: "More at a time than the gateway or the version takes",
    415: "The body is compressed",
    422: "JSON that breaks the schema; the detail names the place",
    429: "This client's rate is used up",
    431: "Headers are too large",
    500: "The model failed; the log has the reason",
    501: "This version has no such ability",
    503: "Nobody can answer now, or a queue is full",
    504: "No answer came within the time that the model has",
}
CLIENT = (400, 401, 404, 405, 408, 413, 415, 429, 431)
"""What the gateway may say to anybody."""
WORKER = (*CLIENT, 422, 500, 501, 503, 504)


@dataclass(frozen=True)
class Verb:
    """What is asked of a model: the types of a question and its answer, and the names of their other forms."""

    path: str
    question: type
    answer: type
    instances: str
    features: str
    answers: str
    pages: bool = False
    """Whether people may ask for a page."""

    @property
    def body(self) -> Json:
        return content({"anyOf": [ref(name) for name in (self.question.__name__, self.instances, self.features)]})

    @property
    def told(self) -> Json:
        found = content({"anyOf": [ref(name) for name in (self.answer.__name__, self.answers)]})
        if self.pages:
            found["content"][HTML_TYPE] = {"schema": {"type": "string"}}
        return found


def verbs() -> dict[str, Verb]:
    """By tag; all that this document knows of the models' tasks."""
    explaining = ("ExplainInstances", "ExplainFeatures", "Explanations")
    return {
        PREDICTIONS: Verb("predict", Question, Answer, "Instances", "Features", "Predictions"),
        EXPLANATIONS: Verb("explain", ExplainQuestion, ExplainedAnswer, *explaining, pages=True),
    }


def document(served: Served) -> Json:
    """The document; the paths' models are those that are served."""
    paths: Json = {}
    for path, tag, operation in operations():
        for method, content_ in operation.items():
            named = {"operationId": operation_id(method, path), "tags": [tag], **content_}
            paths.setdefault(path, {})[method] = named
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "torchserve-marctl",
            "version": "0.1.0",
            "description": "Multiple-choice models behind TorchServe and Envoy. The same requests are answered over "
            "gRPC: inference.GRPCInferenceService and org.pytorch.serve.grpc.inference.InferenceAPIsService.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in (PREDICTIONS, EXPLANATIONS, PROTOCOL, OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "parameters": shared_parameters(served),
            "responses": dict(error_responses()),
        },
    }


def operation_id(method: str, path: str) -> str:
    """`post_v1_models_model_predict` for `POST /v1/models/{model}:predict`."""
    return "_".join([method, *re.findall(r"[a-z0-9]+", path.removesuffix(".json"))])


def schemas() -> Json:
    """The types' own, and what is made of them."""
    asked = [kind for verb in verbs().values() for kind in (verb.question, verb.answer)]
    _, found = msgspec.json.schema_components([*asked, *TYPES], ref_template="#/components/schemas/{name}")
    forms = {name: form for verb in verbs().values() for name, form in several(verb).items()}
    return {
        **with_items(found),
        **forms,
        "ProtocolError": {
            "type": "object",
            "description": "An error of the Open Inference Protocol: its short name, a colon, what was wrong.",
            "properties": {"error": {"type": "string"}},
            "required": ["error"],
        },
        "Ready": {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]},
        "Models": {
            "type": "object",
            "properties": {"models": {"type": "array", "items": {"type": "string"}}},
            "required": ["models"],
        },
        "Readiness": health(queue=False),
        "Health": health(queue=True),
    }


def with_items(schema: Any) -> Any:
    """The same, with arrays of anything that say so: many tools take no array without `items`."""
    if isinstance(schema, list):
        return [with_items(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: with_items(part) for key, part in schema.items()}
    return found | {"items": {}} if found.get("type") == "array" and "items" not in found else found


def several(verb: Verb) -> Json:
    """The other forms of a body and an answer."""
    anything: Json = {}
    question, answer = verb.question.__name__, verb.answer.__name__
    return {
        verb.instances: {
            "type": "object",
            "description": "Several questions; a bad one gets its error in its place.",
            "properties": {
                "instances": {"type": "array", "minItems": 1, "items": {"anyOf": [ref(question), anything]}}
            },
            "required": ["instances"],
        },
        verb.features: {
            "type": "object",
            "description": "One question; `model` is read where the path names none.",
            "properties": {"model": {"type": "string"}, "features": ref(question)},
            "required": ["features"],
        },
        verb.answers: {
            "type": "object",
            "properties": {"predictions": {"type": "array", "items": {"anyOf": [ref(answer), ref("ErrorBody")]}}},
            "required": ["predictions"],
        },
    }


def health(*, queue: bool) -> Json:
    """Each version's workers; `queue` also counts the requests that wait."""
    whole = {"type": "integer", "minimum": 0}
    version = {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "routed": {"type": "boolean"},
        "workers_ready": whole,
        **({"queue": {"anyOf": [whole, {"type": "null"}]}} if queue else {}),
    }
    one = {"type": "object", "properties": version, "required": list(version)}
    fields = {"status": {"enum": ["ready", "not ready"]}, "versions": {"type": "array", "items": one}}
    return {"type": "object", "properties": fields, "required": list(fields)}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def error_responses() -> Iterator[tuple[str, Json]]:
    allow = {"allow": {"schema": {"type": "string"}, "required": True, "description": "the methods"}}
    wait = {"retry-after": {"schema": {"type": "string"}, "required": True, "description": "seconds"}}
    for code, description in ERRORS.items():
        headers = {"headers": allow if code == 405 else wait} if code in (405, 429, 503) else {}
        for prefix, schema in (("Error", "ErrorBody"), ("ProtocolError", "ProtocolError")):
            yield f"{prefix}{code}", {"description": description, **content(ref(schema)), **headers}


def content(schema: Json, media: str = JSON_TYPE) -> Json:
    return {"content": {media: {"schema": schema}}}


def errors(codes: tuple[int, ...], prefix: str = "Error") -> Json:
    return {str(code): {"$ref": f"#/components/responses/{prefix}{code}"} for code in codes}


def operations() -> Iterator[tuple[str, str, Json]]:
    """Path, tag, and method to operation."""
    for tag, verb in verbs().items():
        for path, operation in asking_paths(tag, verb):
            yield path, tag, operation
    yield "/feedback", PREDICTIONS, {"post": feedback()}
    for path, operation in open_inference():
        yield path, PROTOCOL, operation
    for path, operation in pages():
        yield path, OPERATIONS, operation


def asking_paths(kind: str, verb: Verb) -> Iterator[tuple[str, Json]]:
    name = verb.path
    for path in (f"/{name}", f"/v1/{name}", f"/v1/models/{{model}}:{name}", f"/{kind}/{{model}}"):
        yield path, asking(name.capitalize(), parameters(path, pinnable=True), verb.body, verb.told)
    path = f"/{kind}/{{model}}/{{version}}"
    yield path, asking(f"{name.capitalize()} by a certain version", parameters(path), verb.body, verb.told)


def feedback() -> Json:
    taken = {"description": "Kept in the prediction log", **content(ref("Feedback"))}
    request = {"required": True, **content(ref("Feedback"))}
    return {"summary": "A true label", "requestBody": request, "responses": {"202": taken, **errors(WORKER)}}


def asking(summary: str, where: list[Json], body: Json, answer: Json) -> Json:
    told = {"description": "The answer", **answer, "headers": answered_by()}
    request = {"required": True, **body}
    responses = {"200": told, **errors(WORKER)}
    return {"post": {"summary": summary, "parameters": where, "requestBody": request, "responses": responses}}


def answered_by() -> Json:
    return {
        VERSION_HEADER: {"schema": {"type": "string"}, "required": True, "description": "the version that answered"},
        FALLBACK_HEADER: {"schema": {"type": "string"}, "description": "the same, if it stood in for another one"},
        "x-request-id": {"schema": {"type": "string"}, "description": "the request's own, or one made by the gateway"},
    }


def parameters(path: str, *, pinnable: bool = False) -> list[Json]:
    """Of the path, and the headers that choose a version where the path names none."""
    names = [name for name in ("model", "version") if f"{{{name}}}" in path]
    return [{"$ref": f"#/components/parameters/{name}"} for name in [*names, *(CHOOSERS if pinnable else ())]]


CHOOSERS = {"x-user-id": "the same user gets the same version", VERSION_HEADER: "this version or nobody"}


def shared_parameters(served: Served) -> Json:
    models = models_in(served)
    versions = sorted({version for model in models for version in served[model]}, key=version_order)
    found: Json = {
        name: {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": values}}
        for name, values in (("model", models), ("version", versions))
        if values
    }
    headers = {
        name: {"name": name, "in": "header", "description": told, "schema": {"type": "string"}}
        for name, told in CHOOSERS.items()
    }
    return found | headers


def open_inference() -> Iterator[tuple[str, Json]]:
    """The protocol's paths; its errors have a form of their own."""
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        where = parameters(base, pinnable="version" not in base)
        yield f"{base}/infer", infer(where)
        yield base, getting("Inputs and outputs", where, ref("ModelMetadata"), (*WORKER,))
        yield f"{base}/ready", getting("Readiness", parameters(base), ref("Ready"), (*CLIENT, 503))
    told = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name", "version", "extensions"]}
    yield "/v2", getting("The server", [], told, CLIENT)
    alive = {"type": "object", "properties": {"live": {"const": True}}, "required": ["live"]}
    yield "/v2/health/live", getting("Liveness", [], alive, CLIENT)
    yield "/v2/health/ready", getting("Readiness of all routed versions", [], ref("Ready"), (*CLIENT, 503))


def infer(where: list[Json]) -> Json:
    length = {
        "name": JSON_LENGTH_HEADER,
        "in": "header",
        "description": "bytes of the JSON, where raw tensors follow it",
        "schema": {"type": "integer", "minimum": 0},
    }
    raw = {"type": "string", "format": "binary"}
    told = {"description": "The outputs; raw ones follow the JSON", "headers": answered_by()}
    told |= {"content": {JSON_TYPE: {"schema": ref("InferResponse")}, BINARY_TYPE: {"schema": raw}}}
    body = {"required": True, "content": {JSON_TYPE: {"schema": ref("InferRequest")}, BINARY_TYPE: {"schema": raw}}}
    responses = {"200": told, **errors(WORKER, "ProtocolError")}
    return {"post": {"summary": "Infer", "parameters": [*where, length], "requestBody": body, "responses": responses}}


def getting(summary: str, where: list[Json], schema: Json, codes: tuple[int, ...]) -> Json:
    responses = {"200": {"description": summary, **content(schema)}, **errors(codes, "ProtocolError")}
    return {"get": {"summary": summary, "parameters": where, "responses": responses}}


def pages() -> Iterator[tuple[str, Json]]:
    alive = {"type": "object", "properties": {"status": {"const": "alive"}}, "required": ["status"]}
    text: Json = {"type": "string"}
    for path, summary, schema, codes in (
        ("/healthz", "Liveness", alive, CLIENT),
        ("/health", "Workers and queues", ref("Health"), (*CLIENT, 503)),
        ("/ready", "Readiness of all routed versions", ref("Readiness"), (*CLIENT, 503)),
        ("/v1/models", "The models", ref("Models"), CLIENT),
        (PATH, "This document", {"type": "object"}, CLIENT),
    ):
        yield path, {"get": page(summary, content(schema), codes)}
    path = "/v1/models/{model}"
    ready = page("Readiness of a model", content(ref("Ready")), (*CLIENT, 503))
    yield path, {"get": {**ready, "parameters": parameters(path)}}
    yield "/metrics", {"get": page("Prometheus figures", content(text, TEXT_TYPE), (*CLIENT, 503))}


def page(summary: str, told: Json, codes: tuple[int, ...]) -> Json:
    return {"summary": summary, "responses": {"200": {"description": summary, **told}, **errors(codes)}}
