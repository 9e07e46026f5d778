"""What clients send to the batch service, and what it tells them: the service reads and writes these types, and the
gateway's OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MOST_INPUTS = 1000
PRINTABLE = r"^[^\x00-\x1f]+$"
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f=]+$")]
Place = Annotated[str, Meta(min_length=1, max_length=2000, pattern=PRINTABLE)]
"""A path or URI of a file, a folder, or a pattern."""
FIGURES_PATH = "/figures"
"""Where the service tells its figures; the gateway has no route to it."""
Status = Literal["queued", "running", "cancelling", "done", "failed", "cancelled"]


class BatchPredict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job; the options are those of `marctl batch`."""

    model: str
    version: str
    input: Place | Annotated[list[Place], Meta(min_length=1, max_length=MOST_INPUTS)]
    output: Place
    map: Annotated[dict[Name, Name], Meta(max_length=1000)] = {}
    key: Annotated[list[Name], Meta(max_length=1000)] = []
    where: Annotated[str, Meta(min_length=1, max_length=5000, pattern=PRINTABLE)] | None = None
    sample: Annotated[float, Meta(gt=0, le=1)] | None = None
    limit: Annotated[int, Meta(ge=1)] | None = None
    features: Annotated[dict[Name, Place], Meta(max_length=100)] = {}
    as_of: Name | None = None
    explain: dict[str, Any] | None = None
    log: bool = False
    max_errors: Annotated[int, Meta(ge=0)] | None = None
    restart: bool = False

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class BatchRows(Struct, frozen=True):
    """Rows of units that are done; `total`: of all units."""

    done: int
    total: int
    failed: int


class BatchJob(Struct, frozen=True, kw_only=True):
    """A job, as its client sees it."""

    id: str
    status: Status
    model: str
    version: str
    input: list[str]
    output: str
    rows: BatchRows | None
    """None before the first unit is begun."""
    rate: float | None
    """Rows a second, while it runs."""
    eta_s: float | None
    result: dict[str, int] | None
    """Of a finished job: rows read, selected, predicted, failed."""
    error: dict[str, str] | None
    submitted_at: str
    started_at: str | None
    finished_at: str | None


class BatchJobs(Struct, frozen=True):
    """The newest first."""

    jobs: list[BatchJob]


class JobFigures(Struct, frozen=True, kw_only=True):
    """All clients' jobs, for the stack's Prometheus page."""

    unfinished: dict[Status, int]
    """Jobs by status."""
    ended: dict[Status, int]
    """Since the service started, by status; the two counts of rows, too."""
    predicted_rows: int
    failed_rows: int
    rows_left: int
    """Of jobs that run; so is their rate."""
    rows_per_s: float
