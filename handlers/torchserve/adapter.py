"""The one place that knows TorchServe's `data` and `context` (ts/context.py, ts/service.py, 0.12.0)."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from handlers.core.errors import LoadError
from handlers.core.settings import Settings
from handlers.core.task import Reply, Request, Task
from handlers.loading import archive_digest, load_task
from handlers.protocols.open_inference import answer
from handlers.redis.cache import open_cache
from handlers.redis.log import open_log
from handlers.samples import check_samples
from handlers.torchserve.memory import keep_memory
from handlers.torchserve.metrics import WorkerCounts, quiet_server_metrics, torchserve_report
from handlers.torchserve.worker_socket import read_in_pieces

PRINTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
FEEDBACK = "feedback"
"""What follows a version's path where a true label comes instead of a question (TorchServe's header `url_path`)."""

_task: Task[Any, Any] | None = None
_counts: WorkerCounts | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """TorchServe's entry point: called once with None to load, then once per batch.

    Returns bytes only, one per request: any other type can end the worker (see ts/protocol/otf_message_handler.py).
    """
    global _task, _counts
    if _task is None or _counts is None:
        _task = initialize(context)
        # By the name it is registered under: the workers that explain are counted apart from those that predict.
        report = torchserve_report(context, context.model_name, _task.version)
        _counts = WorkerCounts(report, totals=_task.totals)
    if data is None:
        return None
    started = time.monotonic()
    replies = answer_all(_task, [request_of(item, context, i) for i, item in enumerate(data)])
    _counts.add(replies, time.monotonic() - started)
    for i, reply in enumerate(replies):
        if reply.code != 200:
            context.set_response_status(code=reply.code, phrase=reply.phrase, idx=i)
        context.set_response_content_type(i, reply.content_type)
        for name, value in reply.headers.items():
            context.set_response_header(i, name, value)
    return [reply.body for reply in replies]


def answer_all(task: Task[Any, Any], requests: list[Request]) -> list[Reply]:
    """One reply per request, in order, whether it asks or brings a label."""
    labels = [request.header("url_path") == FEEDBACK for request in requests]
    if not any(labels):
        return answer(task, requests)
    asked = [request for request, label in zip(requests, labels, strict=True) if not label]
    answers = iter(answer(task, asked))
    return [
        task.take_label(request) if label else next(answers) for request, label in zip(requests, labels, strict=True)
    ]


def request_of(item: dict[str, Any], context: Any, index: int) -> Request:
    """One TorchServe item; its body is bytes (`decode_input_request` is off), or absent if a form was sent."""
    body = item.get("body", item.get("data"))
    header = partial(context.get_request_header, index)
    sent_id = header("x-request-id")
    request_id = sent_id if sent_id and PRINTABLE_ID.fullmatch(sent_id) else context.get_request_id(index)
    return Request(as_bytes(body), request_id, header("explain") == "True", header)


def as_bytes(body: Any) -> bytes | None:
    """The body as sent, whatever the server made of it; None if that cannot be known."""
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return None


def initialize(context: Any) -> Task[Any, Any]:
    """Load the version and ask its samples.

    A LoadError is logged as one line, which `marctl register` quotes, and ends the worker.
    """
    quiet_server_logs()
    read_in_pieces()
    keep_memory()
    properties = context.system_properties
    model = context.manifest["model"]
    gpu = properties.get("gpu_id")
    device = "cpu" if gpu is None else f"cuda:{gpu}"
    root = Path(properties["model_dir"])
    handler = (context.model_yaml_config or {}).get("handler")
    try:
        os.nice(Settings.load(handler).nice)
        task = load_task(root, model["modelName"], model["modelVersion"], handler, device)
        check_samples(task, root)
        digest = archive_digest(root)
        task.cache = open_cache(task, digest)
        task.log = open_log(task.settings.log, task.name, task.version, digest)
    except LoadError as err:
        print(f"LoadError: {model['modelName']} {model['modelVersion']}: {err}", file=sys.stderr, flush=True)
        raise
    return task


def quiet_server_logs() -> None:
    """TorchServe's own worker code writes several lines per batch, each parsed again by the Java side."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ts.metrics.caching_metric").setLevel(logging.INFO)
    quiet_server_metrics()
