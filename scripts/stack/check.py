"""Asks what runs as a client would: one sample request of each model, through the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
from msgspec import Struct

from marctl.build.reader import METADATA
from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.stack.client import client_session
from marctl.stack.document import Document
from marctl.stack.samples import COMPUTE, request_body
from marctl.stack.shared import unpacked_in
from marctl.stack.state import State
from marctl.stack.store import content_folder
from marctl_handlers.core.samples import SAMPLES_FILE

BUSY = {"busy", "overloaded", "too_many_requests"}
"""Errors of a stack that is well and has enough to do: to start it anew would make that worse."""
REQUEST_ID = "check-"
"""How the ids of these requests begin, which the prediction log holds like all others."""


class CheckFailed(UserError):
    """A model does not answer its own sample request."""


class Answered(Struct, frozen=True):
    """Who answered, and after how long; `busy` where it was too much asked to do so."""

    model: str
    version: str
    ms: float
    busy: bool = False


def check(state: State, timeout_s: float) -> list[Answered]:
    """One request to each model that has workers of its own and samples; raises CheckFailed with every failure.

    Of models in shared workers one is asked, and only where there is no other: each may have to be loaded first.
    Whether an answer is the expected one was checked when the version was loaded. `timeout_s`: for each model.
    """
    running = state.running()
    if running is None:
        raise CheckFailed(f"nothing runs in {state.folder}; start it with `marctl up`")
    document = state.history.current().document
    answers, faults = [], []
    with client_session(state) as session:
        for model, body in questions(document, unpacked_in(running)):
            url = f"{running.predictions}/predictions/{model}"
            try:
                answers.append(ask(session, url, model, body, timeout_s))
            except CheckFailed as err:
                faults.append(str(err))
    if faults:
        raise CheckFailed(listed(running.predictions, faults))
    return answers


def questions(document: Document, unpacked: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Models to ask, each with the first sample request of its default version."""
    found = {True: [], False: []}  # type: dict[bool, list[tuple[str, dict[str, Any]]]]
    for name in sorted(document.models):
        model = document.models[name]
        version = model.versions[model.default]
        if version.workers and not (version.shared and found[True]):
            body = sample_request(content_folder(unpacked, version.archive, version.file))
            found[version.shared] += [(name, body)] if body else []
    yield from found[False] or found[True][:1]


def sample_request(content: Path) -> dict[str, Any] | None:
    """The first sample of an unpacked archive as a request's body; None where it carries none."""
    samples, metadata = read(content / SAMPLES_FILE), read(content / METADATA)
    return request_body(samples[0]["request"], metadata or {}) if samples else None


def read(path: Path) -> Any:
    """A JSON file's content; None where there is no such file, or one that cannot be read."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return None


def ask(session: requests.Session, url: str, model: str, body: dict[str, Any], timeout_s: float) -> Answered:
    """Raises CheckFailed."""
    headers = COMPUTE | {"x-request-id": f"{REQUEST_ID}{uuid4()}"}
    start = time.monotonic()
    try:
        reply = session.post(url, json=body, headers=headers, timeout=timeout_s)
    except requests.RequestException as err:
        raise CheckFailed(f"{model} did not answer within {timeout_s:g} s: {type(err).__name__}") from err
    ms = round((time.monotonic() - start) * 1000, 1)
    busy = error_of(reply) in BUSY
    if not reply.ok and not busy:
        raise CheckFailed(f"{model} answered its sample with {reply.status_code}: {reply.text.strip()[:300]}")
    return Answered(model, reply.headers.get("x-model-version", ""), ms, busy)


def error_of(reply: requests.Response) -> str:
    """The name of the error that it tells; empty for an answer."""
    with suppress(ValueError, AttributeError):
        return str(reply.json().get("error", ""))
    return ""
