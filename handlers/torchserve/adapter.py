"""The one place that knows TorchServe's `data` and `context` (ts/context.py, ts/service.py, 0.12.0)."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from handlers.archive import archive_digest, check_samples, load
from handlers.core.errors import HandlerError, LoadError, ModelFault, NotSupported
from handlers.core.forms import encode_json, refusal
from handlers.core.log_lines import log_in_json
from handlers.core.messages import Model, Reply, Request
from handlers.core.pipeline import Pipeline, printable
from handlers.protocols.open_inference import forms
from handlers.redis.cache import open_cache
from handlers.redis.features import open_features
from handlers.redis.log import open_log
from handlers.torchserve.heartbeat import begin_heartbeat
from handlers.torchserve.memory import keep_memory
from handlers.torchserve.metrics import WorkerMetrics, reserve
from handlers.torchserve.process_figures import begin_process_figures
from handlers.torchserve.waiting import Wait, Waiting
from handlers.torchserve.worker_socket import read_in_pieces

log = logging.getLogger(__name__)

PRINTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
BODY_FIELDS = ("body", "data")
"""Where TorchServe puts a raw body, and the form fields in which its own clients send one."""
FEEDBACK = "feedback"
"""What follows a version's path where a true label comes instead of a question (TorchServe's header `url_path`)."""
REPLY_SENT_S = 0.2
"""After this time a reply has left the process."""

_pipeline: Pipeline | None = None
_metrics: WorkerMetrics | None = None
_waiting = Waiting()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """TorchServe's entry point: called once with None to load, then once per batch.

    Returns bytes only, one per request: any other type can end the worker (see ts/protocol/otf_message_handler.py).
    """
    global _pipeline, _metrics
    if _pipeline is None or _metrics is None:
        _pipeline = initialize(context)
        # By the name it is registered under: explainer workers are counted apart from those that predict.
        _metrics = WorkerMetrics(context.model_name, _pipeline.model.version, _pipeline)
        begin_process_figures(context.model_name, _pipeline.model.version)
    if data is None:
        return None
    requests = requests_of(data, context)
    replies = _metrics.watch(partial(answer_all, _pipeline), requests)
    if _pipeline.broken:
        end_worker()
    for i, reply in enumerate(replies):
        if reply.code != 200:
            context.set_response_status(code=reply.code, phrase=reply.phrase, idx=i)
        context.set_response_content_type(i, reply.content_type)
        for name, value in reply.headers.items():
            context.set_response_header(i, name, value)
    _waiting.freed(time.time() * 1000)
    return [reply.body for reply in replies]


def answer_all(pipeline: Pipeline, requests: Sequence[Request]) -> list[Reply]:
    """One reply per request, in order, whether it asks or brings a label."""
    labels = [request.header("url_path") == FEEDBACK for request in requests]
    if not any(labels):
        return pipeline.answer(requests)
    asked = [request for request, label in zip(requests, labels, strict=True) if not label]
    answers = iter(pipeline.answer(asked))
    return [
        take_label(pipeline, request) if label else next(answers)
        for request, label in zip(requests, labels, strict=True)
    ]


def take_label(pipeline: Pipeline, request: Request) -> Reply:
    """Keep the true label of an earlier prediction in the log."""
    headers = {"x-model-version": pipeline.model.version}
    try:
        if pipeline.log is None:
            raise NotSupported(f"model {pipeline.model} keeps no prediction log, so it takes no labels")
        feedback = pipeline.log.label(request.body)
    except HandlerError as err:
        return refusal(err, headers)
    except Exception:
        log.exception("%s: keeping a label failed, request %s", pipeline.model, printable(request.id))
        return refusal(ModelFault(f"model {pipeline.model} failed on this label"), headers)
    return Reply(encode_json(feedback), 202, "Accepted", headers)


def requests_of(data: Sequence[Mapping[str, Any]], context: Any) -> list[Request]:
    """A TorchServe batch, in order."""
    given = [context.get_all_request_header(i) for i in range(len(data))]
    headers = [headers_of(each) for each in given]
    waits = _waiting.waits(headers, time.time() * 1000)
    return [request_of(item, context.get_request_id(i), given[i], headers[i], waits[i]) for i, item in enumerate(data)]


def request_of(
    item: Mapping[str, Any], own_id: str, given: Mapping[str, Any], headers: dict[str, str], wait: Wait
) -> Request:
    """One TorchServe item, whose body is bytes (`decode_input_request` is off); other fields of a form are ignored."""
    name = next((name for name in BODY_FIELDS if name in item), None)
    sent_id = headers.get("x-request-id", "")
    return Request(
        body=None if name is None else as_bytes(item[name]),
        id=sent_id if PRINTABLE_ID.fullmatch(sent_id) else own_id,
        explain=headers.get("explain") == "True",
        headers=headers,
        content_type=content_type_of(headers, None if name is None else given.get(name)),
        queue_ms=wait.queue_ms,
        batch_ms=wait.batch_ms,
    )


def headers_of(given: Mapping[str, Any]) -> dict[str, str]:
    """The request's own headers, by lowercase name.

    TorchServe adds form fields to them, whose values are mappings, and names of its own, which are in lowercase: a
    client cannot take one's place by another spelling.
    """
    headers = {name: value for name, value in given.items() if isinstance(value, str)}
    names = "".join(headers)
    if names == names.lower():  # as the gateway sends them: the names need not be looked at one by one
        return headers
    lowercase = {name: value for name, value in headers.items() if name == name.lower()}
    return {name.lower(): value for name, value in headers.items()} | lowercase


def content_type_of(headers: Mapping[str, str], parameter: Any) -> str:
    """Of the form field that holds the body, or of the request."""
    kind = parameter.get("content-type") if isinstance(parameter, Mapping) else None
    if isinstance(kind, bytes | bytearray):
        kind = kind.decode("latin-1")
    return kind or headers.get("content-type", "")


def as_bytes(body: Any) -> bytes | None:
    """The body as sent, whatever the server made of it; None if that cannot be known."""
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return None


def initialize(context: Any) -> Pipeline:
    """Load the version and ask its samples.

    A LoadError is logged as one line, which `marctl register` quotes, and ends the worker.
    """
    quiet_server_logs()
    reserve()
    read_in_pieces()
    keep_memory()
    properties = context.system_properties
    named = context.manifest["model"]
    model = Model(named["modelName"], named["modelVersion"])
    gpu = properties.get("gpu_id")
    device = "cpu" if gpu is None else f"cuda:{gpu}"
    root = Path(properties["model_dir"])
    try:
        pipeline = load(root, model, (context.model_yaml_config or {}).get("handler"), device)
        os.nice(pipeline.settings.nice)
        check_samples(pipeline, root)
        open_stores(pipeline, archive_digest(root))
    except LoadError as err:
        print(f"LoadError: {model}: {err}", file=sys.stderr, flush=True)
        raise
    begin_heartbeat()
    # Until here TorchServe's own words, from which `marctl register` reads why a version failed.
    log_in_json("worker", model=context.model_name, version=model.version)
    return pipeline


def open_stores(pipeline: Pipeline, digest: str) -> None:
    """Cache, log, features and protocols: what a server adds. `digest`: of the archive."""
    task, model = pipeline.task, pipeline.model
    pipeline.forms.update(forms(pipeline))
    pipeline.cache = open_cache(task, model, digest)
    pipeline.log = open_log(task, model, digest)
    task.store = open_features(task)
    if pipeline.explainer is not None:
        pipeline.explainer.log = pipeline.log
        pipeline.explainer.task.store = task.store


def end_worker() -> None:
    """End the process once its reply is sent; TorchServe starts another one."""
    threading.Timer(REPLY_SENT_S, os._exit, args=(1,)).start()


def quiet_server_logs() -> None:
    """TorchServe's own worker code writes several lines per batch, each parsed again by the Java side."""
    for name in (None, "ts.metrics.caching_metric"):
        logging.getLogger(name).setLevel(logging.WARNING)
