"""Log lines as JSON: an object for each event, with the fields that say whose it was.

No line holds what a client sent. An exception's own text may quote a question, so it is left out unless the event says
that it may be told; type and place stay, and what the system says of an OSError.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from typing import Any

FIELDS = ("model", "version", "request_id", "traceparent", "kind", "duration_ms", "suppressed")
"""What an event may bring by logging's `extra`."""
MAY_QUOTE = "may_quote"
"""In `extra`: the exception's text may be told."""
FRAMES = 8
"""Of a traceback, the innermost ones."""
EVERY_S = 10.0


def line(part: str, level: str, message: str, time_s: float | None = None, **fields: Any) -> str:
    """One event."""
    moment = datetime.fromtimestamp(time.time() if time_s is None else time_s, UTC)
    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": stamp, "level": level, "part": part, "message": message, **fields})


class JsonLines(logging.Formatter):
    """`fields` stand in every line."""

    def __init__(self, part: str, **fields: Any) -> None:
        super().__init__()
        self._part, self._fields = part, fields

    def format(self, record: logging.LogRecord) -> str:
        own = {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        failure = record.exc_info[1] if record.exc_info else None
        if failure is not None:
            own |= told(failure, may_quote=getattr(record, MAY_QUOTE, False))
        fields = self._fields | own
        return line(self._part, record.levelname.lower(), record.getMessage(), record.created, **fields)


def told(failure: BaseException, *, may_quote: bool) -> dict[str, Any]:
    """What may be told of an exception."""
    frames = traceback.extract_tb(failure.__traceback__)[-FRAMES:]
    found: dict[str, Any] = {"error": type(failure).__name__}
    if may_quote:
        found["error_text"] = str(failure)
    elif isinstance(failure, OSError) and failure.strerror:
        found["error_text"] = failure.strerror
    return found | {"at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]}


class Sparing(logging.Filter):
    """Lets an event of a kind pass once in ten seconds; the next one says how many were left out."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        super().__init__()
        self._every_s = every_s
        self._passed: dict[tuple[Any, ...], float] = {}
        self._left_out: dict[tuple[Any, ...], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        failure = record.exc_info[0] if record.exc_info else None
        key = (record.name, record.msg, getattr(record, "kind", None), failure)
        now = time.monotonic()
        if now - self._passed.get(key, float("-inf")) < self._every_s:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return False
        self._passed[key] = now
        if left_out := self._left_out.pop(key, 0):
            record.suppressed = left_out
        return True


def log_in_json(part: str, **fields: Any) -> None:
    """All of this process's logging from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines(part, **fields))
        handler.addFilter(Sparing())
