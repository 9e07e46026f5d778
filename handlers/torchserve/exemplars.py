"""The last request of each bucket of the time to an answer, for OpenMetrics' exemplars.

prometheus_client keeps none where several processes write. A worker leaves its own in a file of their folder; the
metrics page puts them beside the buckets (scripts/stack/metrics/exemplars.py).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from marctl_handlers.core.messages import TRACE_HEADER, Request
from marctl_handlers.core.trace import trace_id

MOST_CHARACTERS = 128
"""Of an exemplar's labels, names and values together (OpenMetrics 1.0)."""


class Exemplar(msgspec.Struct, frozen=True):
    """One request. `le`: its bucket's upper bound, infinite for the last one."""

    model: str
    version: str
    role: str
    le: str
    seconds: float
    time_s: float
    """Since 1970."""
    labels: dict[str, str]


class Exemplars:
    """Of one worker and model. `keep` costs a microsecond; `write` belongs beside the path."""

    def __init__(self, model: str, version: str) -> None:
        self._model, self._version = model, version
        self._last: dict[tuple[str, float], tuple[str, str | None, float, float]] = {}
        self._changed = False

    def keep(self, role: str, le: float, request: Request, seconds: float, time_s: float) -> None:
        self._last[role, le] = (request.id, request.headers.get(TRACE_HEADER), seconds, time_s)
        self._changed = True

    def write(self, folder: Path) -> None:
        """For whoever reads; a disk that is full has none."""
        if not self._changed:
            return
        self._changed = False
        found = [
            Exemplar(self._model, self._version, role, str(le).replace("inf", "+Inf"), seconds, time_s, labels)
            for (role, le), (request_id, parent, seconds, time_s) in list(self._last.items())
            if (labels := labels_of(request_id, parent))
        ]
        file = folder / f"exemplars_{self._model}_{self._version}_{os.getpid()}.json"
        with suppress(OSError):
            file.with_suffix(".partial").write_bytes(msgspec.json.encode(found))
            os.replace(file.with_suffix(".partial"), file)


def labels_of(request_id: str, traceparent: str | None) -> dict[str, str]:
    """The request's id and its trace's, as far as they fit; a client may choose a long id."""
    trace = trace_id(traceparent)
    found = {"trace_id": trace} if trace else {}
    whole = {"request_id": request_id, **found}
    return whole if sum(len(name) + len(value) for name, value in whole.items()) <= MOST_CHARACTERS else found
