"""Asks a served version the sample questions that its archive carries."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import requests

from marctl.build.reader import Archive
from marctl.core.errors import UserError
from marctl.core.http import local_session
from marctl_handlers.archive import differences
from marctl_handlers.core.messages import LOADING_HEADER, SAMPLE_HEADER
from marctl_handlers.core.samples import Sample
from marctl_handlers.core.task import Task

MARGIN_S = 10.0
LOADING_S = 0.02
COMPUTE = {"cache-control": "no-cache"}
"""What the cache remembers would prove nothing."""


class SampleFailed(UserError):
    """A version is up but does not answer as it did when it was built."""


def ask_samples(inference: str, archive: Archive, response_timeout_s: float, at: str = "") -> int:
    """How many questions were asked, none for an archive that carries none. Raises SampleFailed on the first miss.

    `at`: where in the server the version is, if not under its own names.
    """
    with local_session() as session:
        for i, sample in enumerate(archive.samples):
            answer = ask(session, inference, archive, i, response_timeout_s + MARGIN_S, at)
            if faults := faults_of(archive, sample, answer):
                raise SampleFailed(
                    f"{archive.name} {archive.version} answers its sample {i} wrongly: {'; '.join(faults)}"
                )
    return len(archive.samples)


def ask_explanation(inference: str, archive: Archive, explainer: str, response_timeout_s: float, at: str = "") -> None:
    """Have the first sample explained, in the quickest way. Raises SampleFailed if its answer is another one."""
    if not archive.samples:
        return
    sample = archive.samples[0]
    request = sample.request | {"explain": dict(archive.task.quick_explanation)}
    path = f"explanations/{at or f'{explainer}/{archive.version}'}"
    with local_session() as session:
        answer = post(session, f"{inference}/{path}", request, f"{explainer} {archive.version}", 0, response_timeout_s)
    if faults := faults_of(archive, sample, answer):
        raise SampleFailed(
            f"{explainer} {archive.version} explains another answer to its sample 0: {'; '.join(faults)}"
        )


def ask(
    session: requests.Session, inference: str, archive: Archive, index: int, timeout_s: float, at: str = ""
) -> dict[str, object]:
    """The parsed answer to one sample's request."""
    who = f"{archive.name} {archive.version}"
    url = f"{inference}/predictions/{at or f'{archive.name}/{archive.version}'}"
    body = request_body(archive.samples[index].request, archive.metadata)
    answer: Any = post(session, url, body, who, index, timeout_s)
    return dict(answer["predictions"][0]) if is_raw(archive.metadata) else answer


def request_body(request: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's request as JSON to be sent; one of raw bytes is the only instance of its request."""
    if not is_raw(metadata):
        return request
    return {"instances": [{"b64": request["data"], "content_type": request["content_type"]}]}


def is_raw(metadata: Mapping[str, Any]) -> bool:
    """Whether an archive's requests are raw bodies, such as images."""
    return metadata.get("input_schema", {}) is None


def faults_of(archive: Archive, sample: Sample, answer: dict[str, Any]) -> list[str]:
    """Where a served answer departs from the sample's. A task of one's own compares in its worker, at load."""
    if archive.task is Task and "task" in archive.metadata:
        return []
    return differences(archive.task, sample, answer, archive.tolerance)


def post(
    session: requests.Session, url: str, request: dict[str, Any], who: str, index: int, timeout_s: float
) -> dict[str, object]:
    """The parsed answer of a version to its sample `index`."""
    try:
        reply = patient_post(session, url, request, timeout_s)
    except requests.RequestException as err:
        raise SampleFailed(
            f"{who} did not answer its sample {index} within {timeout_s:.0f} s: {type(err).__name__}"
        ) from err
    if not reply.ok:
        raise SampleFailed(f"{who} refused its sample {index} with {reply.status_code}: {reply.text.strip()[:300]}")
    try:
        answer = reply.json()
    except ValueError as err:
        raise SampleFailed(f"{who} answered its sample {index} with no JSON: {reply.text[:300]}") from err
    if not isinstance(answer, dict):
        raise SampleFailed(f"{who} answered its sample {index} with {type(answer).__name__}, expected an object")
    return answer


def patient_post(session: requests.Session, url: str, request: dict[str, Any], timeout_s: float) -> requests.Response:
    """Again and again while a shared worker loads the version."""
    deadline = time.monotonic() + timeout_s
    while True:
        reply = session.post(url, json=request, headers=COMPUTE | {SAMPLE_HEADER: "1"}, timeout=timeout_s)
        if LOADING_HEADER not in reply.headers or time.monotonic() > deadline:
            return reply
        time.sleep(LOADING_S)


def curl(inference: str, model: str, sample: Sample | None) -> str:
    """A command line to copy that asks the default version."""
    if sample is None or set(sample.request) == {"data", "content_type"}:
        return f"curl -s {inference}/predictions/{model} --data-binary @FILE -H 'Content-Type: TYPE'"
    body = json.dumps(sample.request, ensure_ascii=False).replace("'", "'\\''")
    return f"curl -s {inference}/predictions/{model} -H 'Content-Type: application/json' -d '{body}'"
