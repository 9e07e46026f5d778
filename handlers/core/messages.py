"""What comes in, what goes out, and what is recorded of it: plain types that every other part may import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"
HTML = "text/html; charset=utf-8"

# Headers that the gateway sets and lets no client send (scripts/gateway/names.py).
FAILED_HEADER = "x-fallback-from"
"""The version that failed this request before."""
STALE_HEADER = "x-fallback-stale"
"""Present: nothing but the failed version's last known answer is wanted."""
SHADOW_HEADER = "x-shadow-version"
"""Present: the request is a copy, whose answer no client sees."""
SAMPLE_HEADER = "x-sample"
"""Present: one of the version's own samples, which are not logged."""
ROLE_HEADER = "x-assignment"
"""Why this version was asked: split, fallback, shadow, pinned or explain."""
EXPERIMENT_HEADER = "x-experiment"
"""The experiment of the split, if it has a name."""
PROTOCOL_HEADER = "x-inference-protocol"
"""The form of body and answer where it is not plain JSON (handlers/protocols/)."""
TRACE_HEADER = "traceparent"
"""The client's own place in a trace (W3C Trace Context)."""
START_HEADER = "x-request-start-ms"
"""When the gateway received the request: milliseconds since 1970, UTC."""
TIMEOUT_HEADER = "x-request-timeout-ms"
"""How long the gateway waits for the answer, counted from there."""

LOADING_HEADER = "x-loading"
"""On a refusal: the version is being loaded, so that the gateway asks again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One client request as the server hands it over.

    `body` is None where the server found none. `headers` have lowercase names.
    """

    body: bytes | None
    id: str
    explain: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    """Of the body; empty where the client named none."""
    queue_ms: float | None = None
    """From the gateway to the worker; None without the gateway's start time."""
    batch_ms: float | None = None
    """Of `queue_ms`, waiting for the batch to fill."""

    def header(self, name: str) -> str | None:
        return self.headers.get(name)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, ready to send; `body` is JSON, UTF-8, unless `content_type` says otherwise."""

    body: bytes
    code: int = 200
    phrase: str = "OK"
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON


class ErrorBody(msgspec.Struct, frozen=True):
    """The one form of every error."""

    error: str
    detail: str


class Predictions(msgspec.Struct, frozen=True):
    """Answer to a request of several instances (KServe V1 protocol): an answer or an error for each, in order."""

    predictions: list[Any]


class Binary(msgspec.Struct, frozen=True):
    """A question that is a raw body: an image, a sound, a document."""

    data: bytes
    content_type: str
    """As the client declared it, without parameters; empty if it declared none."""


@dataclass(frozen=True, slots=True)
class Model:
    """Which version answers."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every answer carries besides the task's own fields."""

    prediction_id: str
    model: str
    version: str
    """The version whose answer it is: an earlier answer from the cache may be another version's."""
    latency_ms: float


class Logged(msgspec.Struct, frozen=True, gc=False):
    """What the prediction log is told of one question, before anything is hashed or encoded."""

    request_id: str
    prediction_id: str
    time_us: int
    """Microseconds since 1970, UTC."""
    headers: Mapping[str, str]
    question: Any
    """None where the request could not be decoded."""
    kept: Mapping[str, Any] | None
    """The task's log columns; None for a failure."""
    error: str | None
    """Short name of the failure."""
    code: int
    cache: str | None
    version: str | None
    """Whose answer it is, if another version's."""
    queue_ms: float | None
    """From the gateway to the worker; None without the gateway's start time."""
    handler_ms: float
    size_bytes: int
    """The question's own share of its request's body."""
    batch_ms: float | None = None
    """Of `queue_ms`, waiting for the batch to fill."""
