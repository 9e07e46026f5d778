"""Every failure that a worker can report.

HandlerError            answered to the client, one request at a time
├── NotJson             400  the body is not JSON
├── TooLarge            413  more work in one request than this version takes
├── UnsupportedType     415  a body of a type that this model does not read
├── Invalid             422  JSON that breaks the schema
├── ModelFault          500  the model failed; details go to the log, not to the client
├── NotSupported        501  this version has no such ability
├── Unavailable         503  something that this request needs is away for the moment
│   └── Busy            503  too much work came at once; smaller requests went first
└── OutOfTime           504  the time for this request was over before its turn
LoadError               no code: the worker must not start
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar, Self


class HandlerError(Exception):
    """A failure of one request, with its HTTP code and the short name that programs switch on."""

    code: ClassVar[int]
    error: ClassVar[str]

    @property
    def phrase(self) -> str:
        """The code's standard reason phrase, ASCII (RFC 9110)."""
        return HTTPStatus(self.code).phrase


class NotJson(HandlerError):
    code, error = 400, "not_json"


class TooLarge(HandlerError):
    code, error = 413, "too_large"

    @classmethod
    def beyond(cls, limit: int, cost: int, unit: str) -> Self:
        return cls(f"{cost:,} {unit}; one request may bring at most {limit:,}; send several requests")


class UnsupportedType(HandlerError):
    code, error = 415, "unsupported_type"


class Invalid(HandlerError):
    code, error = 422, "invalid_request"


class ModelFault(HandlerError):
    code, error = 500, "model_failed"


class NotSupported(HandlerError):
    code, error = 501, "not_supported"


class Unavailable(HandlerError):
    code, error = 503, "unavailable"


class Busy(Unavailable):
    error = "busy"


class OutOfTime(HandlerError):
    code, error = 504, "out_of_time"


class LoadError(Exception):
    """The archive cannot serve: something is missing, damaged or does not fit; the text names the cure."""
