"""The API: POST /v1/batch_predict, GET /v1/batch, GET and DELETE /v1/batch/{id}."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from marctl.batch.roots import OutsideRoots, refuse_outside
from marctl.batch.service.jobs import Jobs, NoSuchJob, OutputTaken, TooManyJobs
from marctl.batch.service.records import Asked, Record
from marctl.batch.service.settings import ServiceSettings
from marctl.batch.where import Condition
from marctl.core.errors import UserError, short_name
from marctl.core.files import WriteFailed
from marctl.core.names import name_faults

CODES = {TooManyJobs: 429, OutputTaken: 409, NoSuchJob: 404, OutsideRoots: 403, WriteFailed: 503}
RETRY_AFTER_S = "30"
MOST_INPUTS = 1000
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f=]+$")]
Path = Annotated[str, Field(min_length=1, max_length=2000)]
Client = Annotated[str, Header(alias="x-client")]
"""Who asks, as the gateway knows by the API key; everybody is the same without keys."""


class BatchPredict(BaseModel):
    """Body of POST /v1/batch_predict; the options are those of `marctl batch`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    version: str
    input: Path | Annotated[list[Path], Field(min_length=1, max_length=MOST_INPUTS)]
    output: Path
    map: Annotated[dict[Name, Name], Field(max_length=1000)] = {}
    key: Annotated[list[Name], Field(max_length=1000)] = []
    where: Annotated[str, Field(min_length=1, max_length=5000)] | None = None
    sample: Annotated[float, Field(gt=0, le=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    max_errors: Annotated[int, Field(ge=0)] | None = None
    restart: bool = False


def make_app(jobs: Jobs, settings: ServiceSettings, store: Any) -> FastAPI:
    """`store`: the folder of archives."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        yield
        jobs.stop()

    app = FastAPI(title="Batch predictions", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(UserError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, not_there)

    @app.post("/v1/batch_predict", status_code=202)
    def submit(body: BatchPredict, client: Client = "") -> dict[str, Any]:
        asked = checked(body, settings, store)
        return shown(jobs.submit(asked, client), jobs)

    @app.get("/v1/batch")
    def listed(client: Client = "", status: str | None = None, limit: int = 100) -> dict[str, Any]:
        own = [record for record in jobs.records.all() if record.client == client and status in (None, record.status)]
        return {"jobs": [shown(record, jobs) for record in own[: max(0, min(limit, 1000))]]}

    @app.get("/v1/batch/{job}")
    def show(job: str, client: Client = "") -> dict[str, Any]:
        return shown(jobs.find(job, client), jobs)

    @app.delete("/v1/batch/{job}")
    def cancel(job: str, client: Client = "") -> dict[str, Any]:
        return shown(jobs.cancel(job, client), jobs)

    return app


def checked(body: BatchPredict, settings: ServiceSettings, store: Any) -> Asked:
    """Raises OutsideRoots, and UserError for what the job would be refused for."""
    if faults := name_faults(body.model, body.version):
        raise UserError("; ".join(faults))
    if not (store / f"{body.model}-{body.version}.mar").is_file():
        raise UserError(f"no archive of {body.model} {body.version} in the store")
    inputs = [body.input] if isinstance(body.input, str) else body.input
    for text in inputs:
        refuse_outside(text, settings.read)
    refuse_outside(body.output, settings.write)
    if body.where is not None:
        Condition(body.where)
    return Asked(**{**body.model_dump(), "input": inputs})


def shown(record: Record, jobs: Jobs) -> dict[str, Any]:
    """A job as clients see it."""
    figures = jobs.records.figures(record.id)
    running = record.status in ("running", "cancelling")
    asked = record.asked
    return {
        "id": record.id,
        "status": record.status,
        "model": asked.model,
        "version": asked.version,
        "input": asked.input,
        "output": asked.output,
        "rows": None if figures is None else {"done": figures.rows, "total": figures.total, "failed": figures.failed},
        "rate": figures.rate if figures is not None and running else None,
        "eta_s": figures.eta_s if figures is not None and running else None,
        "result": record.rows,
        "error": record.error,
        "submitted_at": record.submitted_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


# --- errors, in the form of all others


def told(code: int, error: str, detail: str) -> JSONResponse:
    headers = {"retry-after": RETRY_AFTER_S} if code in (429, 503) else None
    return JSONResponse({"error": error, "detail": detail}, code, headers)


def refused(_: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, UserError)
    code = next((code for kind, code in CODES.items() if isinstance(err, kind)), 422)
    return told(code, "invalid_request" if short_name(err) == "failed" else short_name(err), str(err))


def invalid(_: Request, err: Exception) -> JSONResponse:
    """400 for what is no JSON, 422 for JSON that breaks the schema, with its path."""
    assert isinstance(err, RequestValidationError)
    first = err.errors()[0]
    path = ".".join(map(str, first["loc"][1:]))
    if first["type"] == "json_invalid":
        return told(400, "not_json", f"the body is not JSON; expected {EXAMPLE}")
    return told(422, "invalid_request", f"{first['msg']} - at `$.{path}`; expected {EXAMPLE}")


def not_there(_: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, HTTPException)
    error = {404: "no_such_path", 405: "method_not_allowed"}.get(err.status_code, "failed")
    return told(
        err.status_code,
        error,
        f"{err.detail}; there are POST /v1/batch_predict, GET /v1/batch, GET and DELETE /v1/batch/ID",
    )


EXAMPLE = '{"model": "mcqa", "version": "2.0", "input": "/data/in.parquet", "output": "/data/out", "key": ["id"]}'
