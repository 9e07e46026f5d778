"""The gateway's HTTP surface as an OpenAPI 3.1 document, made from what the served archives declare.

Served at `/openapi.json`, with the models that are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from marctl.core.explainers import models_in
from marctl.core.order import version_order
from marctl.gateway.names import FALLBACK_HEADER, VERSION_HEADER, Json
from marctl.gateway.policies import Served
from marctl_handlers.core.messages import ErrorBody
from marctl_handlers.protocols.open_inference import JSON_LENGTH_HEADER, InferRequest, InferResponse, ModelMetadata
from marctl_handlers.redis.log import Feedback

PATH = "/openapi.json"
KEY = "key"
KEYLESS = ("/healthz", "/ready")
JSON_TYPE, BINARY_TYPE, TEXT_TYPE = "application/json", "application/octet-stream", "text/plain"
HTML_TYPE = "text/html"
TYPES = (ErrorBody, Feedback, InferRequest, InferResponse, ModelMetadata)
EMBED_MODEL = "embed"
"""Who answers `/embed`."""
PREDICTIONS, EXPLANATIONS, PROTOCOL, OPERATIONS = "predictions", "explanations", "open inference protocol", "operations"
TAGS = (PREDICTIONS, EXPLANATIONS, PROTOCOL, OPERATIONS)
ERRORS = {
    400: "The body is not JSON, or the request breaks HTTP's rules",
    401: "The gateway asks for a key, in the header x-api-key",
    403: "A place, or a web page's origin, that the gateway's operator does not open",
    404: "No such model, version or path",
    405: "The path takes another method, which the header allow names",
    408: "The request did not arrive in time",
    409: "Another job writes to the same folder",
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
CLIENT = (400, 401, 403, 404, 405, 408, 413, 415, 429, 431)
"""What the gateway may say to anybody."""
WORKER = (*CLIENT, 422, 500, 501, 503, 504)


@dataclass(frozen=True)
class Asked:
    """What is asked of one model: the schemas of a question and its answer, and what a raw body may be."""

    model: str
    kind: str
    """PREDICTIONS or EXPLANATIONS."""
    question: Json | None
    """None where the body is raw."""
    answer: Json
    media: tuple[str, ...] = ()
    example: Json | None = None
    """A question that a version of the model is known to answer."""
    fields: Json | None = None
    """Of a question that has a field `features` of its own, which then is not one round a question."""

    @property
    def verb(self) -> str:
        return VERBS[self.kind]

    def name(self, part: str) -> str:
        """A component's name: models may have types of the same names."""
        return f"{self.model}.{part}"

    @property
    def forms(self) -> tuple[str, str, str]:
        """Names of several questions, of one with its model, and of several answers."""
        prefix = "" if self.kind == PREDICTIONS else "Explain"
        return self.name(f"{prefix}Instances"), self.name(f"{prefix}Features"), self.name(f"{prefix}Answers")

    @property
    def body(self) -> Json:
        if self.question is None:
            raw = {"type": "string", "format": "binary"}
            return {"content": {media: {"schema": raw} for media in self.media}}
        instances, features, _ = self.forms
        found = content({"anyOf": [self.question, ref(instances), ref(features)]})
        if self.example is not None:
            found["content"][JSON_TYPE]["example"] = self.example
        return found

    @property
    def told(self) -> Json:
        found = content({"anyOf": [self.answer, ref(self.forms[2])]})
        if self.kind == EXPLANATIONS:
            found["content"][HTML_TYPE] = {"schema": {"type": "string"}}
        return found


@dataclass(frozen=True)
class Section:
    """Paths of a further service behind the gateway."""

    tag: str
    operations: Mapping[str, Json]
    """By path; of each, method to operation."""
    types: tuple[type, ...]
    """That they refer to."""


VERBS = {PREDICTIONS: "predict", EXPLANATIONS: "explain"}
ANY_MODEL = "any-model"
"""Stands for all of them where they are too many for paths of their own."""
Declared = Mapping[str, Json]
"""Model to what its archive's metadata says of its task (`declared` in scripts/build/build.py)."""


def asked_of(served: Served, declared: Declared) -> list[Asked]:
    """Every kind of question that every model takes."""
    found = []
    for model in models_in(served):
        told = declared.get(model) or {}
        anything: Json = {}
        question = told.get("input_schema", anything)
        media = tuple(told.get("content_types") or ())
        found.append(
            Asked(
                model,
                PREDICTIONS,
                None if question is None else placed(model, question),
                placed(model, told.get("output_schema", anything)),
                media,
                told.get("example"),
                fields_beside_features(model, question),
            )
        )
        if "explain_input_schema" in told:
            question, answer = (placed(model, told[f"explain_{name}_schema"]) for name in ("input", "output"))
            fields = fields_beside_features(model, told["explain_input_schema"])
            found.append(Asked(model, EXPLANATIONS, question, answer, (), told.get("example"), fields))
    return found


def fields_beside_features(model: str, question: Json | None) -> Json | None:
    """The fields of a question type one of which is `features`; None for any other."""
    name = str((question or {}).get("$ref", "")).rpartition("/")[2]
    fields: Json = ((question or {}).get("$defs") or {}).get(name, {}).get("properties", {})
    return placed(model, fields) if "features" in fields else None


def placed(model: str, schema: Json) -> Json:
    """A schema of its own as a part of the document: its types are components that carry the model's name."""
    text = json.dumps({key: value for key, value in schema.items() if key != "$defs"})
    found: Json = json.loads(text.replace('"#/$defs/', f'"#/components/schemas/{model}.'))
    return found


def types_of(model: str, told: Json) -> Iterator[tuple[str, Json]]:
    """The components that a model's schemas refer to."""
    for name in ("input_schema", "output_schema", "explain_input_schema", "explain_output_schema"):
        for part, schema in ((told.get(name) or {}).get("$defs") or {}).items():
            # Generators of clients name types by titles.
            yield f"{model}.{part}", placed(model, schema) | {"title": f"{model}.{part}"}


def document(
    served: Served,
    declared: Declared,
    sections: Sequence[Section] = (),
    *,
    one_for_all: bool = False,
    keys: bool = False,
) -> Json:
    """The document: a path of its own for each model that is served, with its own types, or `one_for_all` models.

    `keys`: whether the gateway asks for one.
    """
    paths: Json = {}
    asked = asked_of({ANY_MODEL: ()} if one_for_all else served, declared)
    further = [(path, each.tag, operation) for each in sections for path, operation in each.operations.items()]
    for path, tag, operation in (*operations(asked), *further):
        for method, content_ in operation.items():
            named = {"operationId": operation_id(method, path), "tags": [tag], **content_}
            paths.setdefault(path, {})[method] = named
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "torchserve-marctl",
            "version": "0.1.0",
            "description": "Models behind TorchServe and Envoy. The same requests are answered over gRPC: "
            "inference.GRPCInferenceService and org.pytorch.serve.grpc.inference.InferenceAPIsService.",
        },
        "servers": [{"url": "/"}],
        **({"security": [{KEY: []}]} if keys else {}),
        "tags": [{"name": tag} for tag in (*TAGS, *(each.tag for each in sections))],
        "paths": paths,
        "components": {
            "schemas": schemas(asked, declared, [kind for each in sections for kind in each.types]),
            "parameters": shared_parameters(served),
            "responses": dict(error_responses()),
            **({"securitySchemes": {KEY: {"type": "apiKey", "in": "header", "name": "x-api-key"}}} if keys else {}),
        },
    }


def operation_id(method: str, path: str) -> str:
    """`post_v1_models_model_predict` for `POST /v1/models/{model}:predict`."""
    return "_".join([method, *re.findall(r"[a-z0-9]+", path.removesuffix(".json"))])


def schemas(asked: Sequence[Asked], declared: Declared, further: Sequence[type] = ()) -> Json:
    """The types' own, and what is made of them."""
    _, found = msgspec.json.schema_components([*TYPES, *further], ref_template="#/components/schemas/{name}")
    theirs = {name: schema for model, told in declared.items() for name, schema in types_of(model, told)}
    forms = {name: form for each in asked if each.question is not None for name, form in several(each).items()}
    return {
        **for_generators({**found, **theirs}),
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


def for_generators(schema: Any) -> Any:
    """The same as generators of clients need it: an array without `items` is none for many, and a field with a default,
    even an empty one, is one that must be there for openapi-typescript."""
    if isinstance(schema, list):
        return [for_generators(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: for_generators(part) for key, part in schema.items()}
    is_schema = any(isinstance(found.get(key), str | list) for key in ("type", "anyOf", "$ref"))
    if is_schema and found.get("default", 0) in (None, {}, [], ""):
        del found["default"]
    return found | {"items": {}} if found.get("type") == "array" and "items" not in found else found


def several(asked: Asked) -> Json:
    """The other forms of a body and an answer."""
    anything: Json = {}
    instances, features, answers = asked.forms
    return {
        instances: {
            "type": "object",
            "description": "Several questions; a bad one gets its error in its place.",
            "properties": {
                "instances": {"type": "array", "minItems": 1, "items": {"anyOf": [asked.question, anything]}}
            },
            "required": ["instances"],
        },
        features: {
            "type": "object",
            "description": "One question; `model` is read where the path names none.",
            "properties": {"model": {"type": "string"}, **(asked.fields or {"features": asked.question})},
            "required": ["features"],
        },
        answers: {
            "type": "object",
            "properties": {"predictions": {"type": "array", "items": {"anyOf": [asked.answer, ref("ErrorBody")]}}},
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


def operations(asked: Sequence[Asked]) -> Iterator[tuple[str, str, Json]]:
    """Path, tag, and method to operation."""
    for each in asked:
        for path, operation in asking_paths(each):
            yield path, each.kind, operation
    for kind in VERBS:
        for path, operation in shared_paths([each for each in asked if each.kind == kind]):
            yield path, kind, operation
    yield "/feedback", PREDICTIONS, {"post": feedback()}
    for path, operation in open_inference():
        yield path, PROTOCOL, operation
    for path, operation in pages():
        yield path, OPERATIONS, operation


def asking_paths(asked: Asked) -> Iterator[tuple[str, Json]]:
    """Where one model is asked."""
    model, verb, title = asked.model, asked.verb, asked.verb.capitalize()
    if model == ANY_MODEL:
        model = "{model}"
    own = ["/embed"] if (model, asked.kind) == (EMBED_MODEL, PREDICTIONS) else []
    for path in (f"/{asked.kind}/{model}", f"/v1/models/{model}:{verb}", *own):
        yield path, asking(f"{title} with {model}", parameters(path, pinnable=True), asked.body, asked.told)
    path = f"/{asked.kind}/{model}/{{version}}"
    yield path, asking(f"{title} with a certain version of {model}", parameters(path), asked.body, asked.told)


def shared_paths(asked: Sequence[Asked]) -> Iterator[tuple[str, Json]]:
    """Where the body names the model, or the main one is meant."""
    readable = [each for each in asked if each.question is not None]
    if readable:
        verb = readable[0].verb
        body, told = (either([getattr(each, part) for each in readable]) for part in ("body", "told"))
        for path in (f"/{verb}", f"/v1/{verb}"):
            yield path, asking(verb.capitalize(), parameters(path, pinnable=True), body, told)


def either(contents: Sequence[Json]) -> Json:
    """Content that may be any of these."""
    media = dict.fromkeys(name for each in contents for name in each["content"])
    found = {name: [each["content"][name]["schema"] for each in contents if name in each["content"]] for name in media}
    return {"content": {name: {"schema": {"anyOf": schemas}} for name, schemas in found.items()}}


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
        # Not an enumeration: a client that was generated today asks for tomorrow's versions, too.
        name: {"name": name, "in": "path", "required": True, "schema": {"type": "string", "examples": values}}
        for name, values in (("model", models), ("version", versions))
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
        found = page(summary, content(schema), codes)
        yield path, {"get": found | ({"security": []} if path in KEYLESS else {})}
    path = "/v1/models/{model}"
    ready = page("Readiness of a model", content(ref("Ready")), (*CLIENT, 503))
    yield path, {"get": {**ready, "parameters": parameters(path)}}
    yield "/metrics", {"get": page("Prometheus figures", content(text, TEXT_TYPE), (*CLIENT, 503))}


def page(summary: str, told: Json, codes: tuple[int, ...]) -> Json:
    return {"summary": summary, "responses": {"200": {"description": summary, **told}, **errors(codes)}}
