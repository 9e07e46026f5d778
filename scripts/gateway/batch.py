"""The way to the batch service, where there is one, and its part of the OpenAPI document."""

from __future__ import annotations

from typing import get_args

from marctl.core.batch_jobs import BatchJob, BatchJobs, BatchPredict, Status
from marctl.gateway.clusters import address_of, plain_cluster
from marctl.gateway.names import Json, seconds
from marctl.gateway.openapi import CLIENT, Section, content, errors, ref
from marctl.gateway.routes import other_methods
from marctl.gateway.settings import GatewaySettings

BATCH = "batch"
METHODS = {"/v1/batch_predict": ["POST"], "/v1/batch": ["GET"], "/v1/batch/[^/]+": ["GET", "DELETE"]}
"""By a regular expression of the path."""
REQUESTS = 64
"""Under way at once: the service takes and tells jobs, and computes nothing."""
TIMEOUT_S = 10.0
CODES = (*CLIENT, 422, 503, 504)


def routes(settings: GatewaySettings) -> list[Json]:
    if settings.batch is None:
        return []
    action = {"cluster": BATCH, "timeout": seconds(TIMEOUT_S)}
    wrong = [other_methods(path, methods) for path, methods in METHODS.items()]
    return [*wrong, *({"match": {"safe_regex": {"regex": path}}, "route": action} for path in METHODS)]


def clusters(settings: GatewaySettings) -> list[Json]:
    if settings.batch is None:
        return []
    return [plain_cluster(BATCH, address_of(f"http://{settings.batch}"), REQUESTS)]


def sections(settings: GatewaySettings) -> list[Section]:
    if settings.batch is None:
        return []
    operations = {
        "/v1/batch_predict": {"post": submitting()},
        "/v1/batch": {"get": telling("The client's jobs", "BatchJobs", where=[*LISTED])},
        "/v1/batch/{id}": {
            "get": telling("A job", "BatchJob", 404, where=[ID]),
            "delete": telling("End a job; what it has done stays", "BatchJob", 404, where=[ID]),
        },
    }
    return [Section("batch jobs", operations, (BatchPredict, BatchJob, BatchJobs))]


ID: Json = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^batch-[0-9a-f]{16}$"},
}
STATUSES: Json = {"enum": list(get_args(Status))}
LISTED: tuple[Json, ...] = (
    {"name": "status", "in": "query", "description": "only jobs of this status", "schema": STATUSES},
    {"name": "limit", "in": "query", "description": "so many at most", "schema": {"type": "integer", "default": 100}},
)


def submitting() -> Json:
    taken = {"description": "The job, which waits for its turn", **content(ref("BatchJob"))}
    request = {"required": True, **content(ref("BatchPredict"))}
    responses = {"202": taken, **errors((*CODES, 403, 409))}
    return {"summary": "Predict the rows of files", "requestBody": request, "responses": responses}


def telling(summary: str, kind: str, *codes: int, where: list[Json]) -> Json:
    told = {"description": summary, **content(ref(kind))}
    return {"summary": summary, "parameters": where, "responses": {"200": told, **errors((*CODES, *codes))}}
