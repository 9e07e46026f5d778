"""Explain requests: plain JSON, whose answer may be a page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from handlers.core.errors import HandlerError
from handlers.core.forms import Decoded, Result
from handlers.core.json_form import JsonForm
from handlers.core.messages import HTML, Reply, Request
from handlers.tasks.multiple_choice.explain.page import page
from handlers.tasks.multiple_choice.explain.request import ExplainQuestion

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A page needs nothing but its own styles; whatever else may get into it does not run."""


class ExplainForm(JsonForm):
    """Answers with an HTML page where the question asks for one, or the `Accept` header prefers one."""

    def __init__(self, example: str, max_instances: int) -> None:
        super().__init__(ExplainQuestion, example, max_instances)

    def decode(self, request: Request) -> Decoded:
        decoded = super().decode(request)
        if not prefers_page(request.header("accept") or ""):
            return decoded
        return replace(decoded, questions=[wants_page(question) for question in decoded.questions])

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        if not any(isinstance(q, ExplainQuestion) and q.explain.format == "html" for q in decoded.questions):
            return super().encode(decoded, results, headers)
        body = page(list(zip(decoded.questions, results, strict=True))).encode()
        return Reply(body, headers={**headers, "content-security-policy": PAGE_POLICY}, content_type=HTML)


def prefers_page(accept: str) -> bool:
    """Whether an Accept header names HTML, and JSON not before it. Weights (`q=`) are not looked at."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "text/html" in kinds and "application/json" not in kinds[: kinds.index("text/html")]


def wants_page(question: msgspec.Struct | HandlerError) -> msgspec.Struct | HandlerError:
    """The same as a page, unless the question itself names a format."""
    if not isinstance(question, ExplainQuestion) or question.explain.format is not None:
        return question
    return msgspec.structs.replace(question, explain=msgspec.structs.replace(question.explain, format="html"))
