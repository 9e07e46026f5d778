"""The API: POST /v1/batch_predict, GET /v1/batch, GET and DELETE /v1/batch/{id}."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from marctl.batch.roots import OutsideRoots, refuse_outside
from marctl.batch.service.jobs import Jobs, NoSuchJob, OutputTaken, TooManyJobs
from marctl.batch.service.records import Record
from marctl.batch.service.settings import ServiceSettings
from marctl.batch.where import Condition
from marctl.core.batch_jobs import FIGURES_PATH, BatchJob, BatchJobs, BatchPredict, BatchRows
from marctl.core.errors import UserError, short_name
from marctl.core.files import WriteFailed
from marctl.core.names import name_faults

CODES = {TooManyJobs: 429, OutputTaken: 409, NoSuchJob: 404, OutsideRoots: 403, WriteFailed: 503}
RETRY_AFTER_S = "30"
MOST_LISTED = 1000
LONGEST_EXPLAIN = 10_000
"""Characters of `explain`, which the job's command gets as one word."""
EXAMPLE = '{"model": "mcqa", "version": "2.0", "input": "/data/in.parquet", "output": "/data/out", "key": ["id"]}'
Client = Annotated[str, Header(alias="x-client")]
"""Who asks, as the gateway knows by the API key; everybody is the same without keys."""


class NotJson(UserError):
    """The body is no JSON."""


async def body_of(request: Request) -> BatchPredict:
    """Raises NotJson, and UserError for JSON that breaks the schema."""
    try:
        return msgspec.json.decode(await request.body(), type=BatchPredict)
    except msgspec.ValidationError as err:
        raise UserError(f"{err}; expected {EXAMPLE}") from err
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise NotJson(f"the body is not JSON; expected {EXAMPLE}") from err


def make_app(jobs: Jobs, settings: ServiceSettings, store: Path) -> FastAPI:
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

    @app.post("/v1/batch_predict")
    def submit(asked: Annotated[BatchPredict, Depends(body_of)], client: Client = "") -> Response:
        refuse_wrong(asked, settings, store)
        return told(shown(jobs.submit(asked, client), jobs), 202)

    @app.get("/v1/batch")
    def listed(client: Client = "", status: str | None = None, limit: int = 100) -> Response:
        own = [record for record in jobs.records.all() if record.client == client and status in (None, record.status)]
        return told(BatchJobs([shown(record, jobs) for record in own[: max(0, min(limit, MOST_LISTED))]]))

    @app.get("/v1/batch/{job}")
    def show(job: str, client: Client = "") -> Response:
        return told(shown(jobs.find(job, client), jobs))

    @app.delete("/v1/batch/{job}")
    def cancel(job: str, client: Client = "") -> Response:
        return told(shown(jobs.cancel(job, client), jobs))

    @app.get(FIGURES_PATH)
    def figures() -> Response:
        return told(jobs.figures())

    return app


def refuse_wrong(asked: BatchPredict, settings: ServiceSettings, store: Path) -> None:
    """Raise OutsideRoots, and UserError for what the job would be refused for."""
    if faults := name_faults(asked.model, asked.version):
        raise UserError("; ".join(faults))
    if not (store / f"{asked.model}-{asked.version}.mar").is_file():
        raise UserError(f"no archive of {asked.model} {asked.version} in the store")
    if bool(asked.features) != (asked.as_of is not None):
        raise UserError("`features` and `as_of` belong together: as_of is the column with each row's time")
    if len(msgspec.json.encode(asked.explain)) > LONGEST_EXPLAIN:
        raise UserError(f"explain: more than {LONGEST_EXPLAIN:,} characters")
    for text in (*asked.inputs, *asked.features.values()):
        refuse_outside(text, settings.read)
    refuse_outside(asked.output, settings.write)
    if asked.where is not None:
        Condition(asked.where)


def shown(record: Record, jobs: Jobs) -> BatchJob:
    figures = jobs.records.figures(record.id)
    running = record.status in ("running", "cancelling")
    asked = record.asked
    return BatchJob(
        id=record.id,
        status=record.status,
        model=asked.model,
        version=asked.version,
        input=asked.inputs,
        output=asked.output,
        rows=None if figures is None else BatchRows(figures.rows, figures.total, figures.failed),
        rate=figures.rate if figures is not None and running else None,
        eta_s=figures.eta_s if figures is not None and running else None,
        result=record.rows,
        error=record.error,
        submitted_at=record.submitted_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
    )


def told(what: Any, code: int = 200) -> Response:
    return Response(msgspec.json.encode(what), code, media_type="application/json")


# --- errors, in the form of all others


def wrong(code: int, error: str, detail: str) -> JSONResponse:
    headers = {"retry-after": RETRY_AFTER_S} if code in (429, 503) else None
    return JSONResponse({"error": error, "detail": detail}, code, headers)


def refused(_: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, UserError)
    if isinstance(err, NotJson):
        return wrong(400, "not_json", str(err))
    code = next((code for kind, code in CODES.items() if isinstance(err, kind)), 422)
    return wrong(code, "invalid_request" if short_name(err) == "failed" else short_name(err), str(err))


def invalid(_: Request, err: Exception) -> JSONResponse:
    """Of the query string."""
    assert isinstance(err, RequestValidationError)
    first = err.errors()[0]
    return wrong(422, "invalid_request", f"{first['msg']} - at {'.'.join(map(str, first['loc']))}")


def not_there(_: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, HTTPException)
    error = {404: "no_such_path", 405: "method_not_allowed"}.get(err.status_code, "failed")
    paths = "POST /v1/batch_predict, GET /v1/batch, GET and DELETE /v1/batch/ID"
    return wrong(err.status_code, error, f"{err.detail}; there are {paths}")
