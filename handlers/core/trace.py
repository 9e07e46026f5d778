"""W3C Trace Context: the header by which a client says where in its own trace a request belongs.

https://www.w3.org/TR/trace-context/, level 1. Nothing is made up for a client that sends none: a prediction's id
already joins all that is kept of it.
"""

from __future__ import annotations

import re

FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")
LENGTH = 55
"""Of the four parts that every version of the header begins with."""


def traceparent(header: str | None) -> str | None:
    """The header's four known parts; None where there is none, or where it is malformed and so must be ignored."""
    if header is None or not FORM.fullmatch(header[:LENGTH]):
        return None
    more = header[LENGTH:]
    # Version 00 ends here; a later one may go on, behind a dash.
    return header[:LENGTH] if not more or (more[0] == "-" and not header.startswith("00")) else None


def trace_id(header: str | None) -> str | None:
    """The trace's own part of it."""
    parent = traceparent(header)
    return None if parent is None else parent.split("-")[1]
