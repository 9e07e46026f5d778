"""Explain requests: plain JSON, whose answer may be a page for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from marctl_handlers.core.forms import Decoded, Form, Result
from marctl_handlers.core.messages import HTML, Reply, Request

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A page needs nothing but its own styles; whatever else may get into it does not run."""
Rows = Sequence[tuple[Any, Result]]
"""Questions with their answers."""


class ExplainForm(Form):
    """Answers with an HTML page where a question's options ask for one, or the `Accept` header prefers one.

    A question has its options in a field `explain`, and they have a field `format`.
    """

    def __init__(self, plain: Form, page: Callable[[Rows], str]) -> None:
        """`plain` decodes bodies and encodes JSON."""
        self._plain = plain
        self._page = page

    def decode(self, request: Request) -> Decoded | Reply:
        decoded = self._plain.decode(request)
        if isinstance(decoded, Reply) or not prefers_page(request.header("accept") or ""):
            return decoded
        return replace(decoded, questions=[wants_page(question) for question in decoded.questions])

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        if not any(format_of(question) == "html" for question in decoded.questions):
            return self._plain.encode(decoded, results, headers)
        body = self._page(list(zip(decoded.questions, results, strict=True))).encode()
        return Reply(body, headers={**headers, "content-security-policy": PAGE_POLICY}, content_type=HTML)


def prefers_page(accept: str) -> bool:
    """Whether an Accept header names HTML, and JSON not before it. Weights (`q=`) are not looked at."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "text/html" in kinds and "application/json" not in kinds[: kinds.index("text/html")]


def format_of(question: Any) -> str | None:
    """What the question's options name; None for an error in a question's place."""
    options = getattr(question, "explain", None)
    return None if options is None else options.format


def wants_page(question: Any) -> Any:
    """The same as a page, unless the question itself names a format."""
    if getattr(question, "explain", None) is None or format_of(question) is not None:
        return question
    return msgspec.structs.replace(question, explain=msgspec.structs.replace(question.explain, format="html"))
