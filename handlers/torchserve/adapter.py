"""The one place that knows TorchServe's `data` and `context` (ts/context.py, ts/service.py, 0.12.0)."""

from __future__ import annotations

import gc
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

from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.log_lines import log_in_json
from marctl_handlers.core.memory import keep_memory, share_memory
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.serving import answer_all, open_version
from marctl_handlers.shared.host import Host
from marctl_handlers.shared.report import begin_report
from marctl_handlers.shared.settings import SharedSettings
from marctl_handlers.torchserve.heartbeat import begin_heartbeat
from marctl_handlers.torchserve.host_metrics import FILE_BYTES, HostMetrics
from marctl_handlers.torchserve.metrics import BatchMetrics, WorkerMetrics, reserve
from marctl_handlers.torchserve.process_figures import begin_process_figures
from marctl_handlers.torchserve.waiting import Wait, Waiting
from marctl_handlers.torchserve.worker_socket import read_in_pieces

log = logging.getLogger(__name__)
PRINTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
BODY_FIELDS = ("body", "data")
"""Where TorchServe puts a raw body, and the form fields in which its own clients send one."""
REPLY_SENT_S = 0.2
"""After this time a reply has left the process."""

SHARED = "shared"
"""Section of model-config.yaml of a worker that holds many versions."""

_served: Pipeline | Host | None = None
_metrics: BatchMetrics | None = None
_waiting = Waiting()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """TorchServe's entry point: called once with None to load, then once per batch.

    Returns bytes only, one per request: any other type can end the worker (see ts/protocol/otf_message_handler.py).
    """
    global _served, _metrics
    if _served is None or _metrics is None:
        _served = initialize(context)
        # By the name it is registered under: explainer workers are counted apart from those that predict.
        name, version = context.model_name, context.manifest["model"]["modelVersion"]
        _metrics = metrics_of(_served, name, version)
        begin_process_figures(name, version)
    if data is None:
        return None
    requests = requests_of(data, context)
    answer = _served.answer if isinstance(_served, Host) else partial(answer_all, _served)
    replies = _metrics.watch(answer, requests)
    if _served.broken:
        end_worker()
    for i, reply in enumerate(replies):
        if reply.code != 200:
            context.set_response_status(code=reply.code, phrase=reply.phrase, idx=i)
        context.set_response_content_type(i, reply.content_type)
        for name, value in reply.headers.items():
            context.set_response_header(i, name, value)
    _waiting.freed(time.time() * 1000)
    return [reply.body for reply in replies]


def metrics_of(served: Pipeline | Host, name: str, version: str) -> BatchMetrics:
    return HostMetrics(name, version, served) if isinstance(served, Host) else WorkerMetrics(name, version, served)


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


def initialize(context: Any) -> Pipeline | Host:
    """Load the version and ask its samples, or begin to hold many.

    A LoadError is logged as one line, which `marctl register` quotes, and ends the worker.
    """
    quiet_server_logs()
    config = context.model_yaml_config or {}
    named = context.manifest["model"]
    model = Model(named["modelName"], named["modelVersion"])
    root = Path(context.system_properties["model_dir"])
    read_in_pieces()
    try:
        gpu = context.system_properties.get("gpu_id")
        served = begin_host(root, config[SHARED]) if SHARED in config else begin(root, model, config, gpu)
    except LoadError as err:
        print(f"LoadError: {model}: {err}", file=sys.stderr, flush=True)
        raise
    begin_heartbeat()
    # Until here TorchServe's own words, from which `marctl register` reads why a version failed.
    log_in_json("worker", model=context.model_name, version=model.version)
    if isinstance(served, Pipeline):
        log.info("loaded; computed by %s", served.task.runtime)
    return served


def begin(root: Path, model: Model, config: Mapping[str, Any], gpu: int | None) -> Pipeline:
    """A worker of one version; `gpu`: the one that TorchServe gave it. Raises LoadError."""
    reserve()
    keep_memory()
    pipeline = open_version(root, model, config.get("handler"), gpu)
    os.nice(pipeline.settings.nice)
    # A collection that looks through the libraries' objects, too, stops a worker of `mcqa` for 140 ms.
    gc.freeze()
    return pipeline


def begin_host(root: Path, section: Any) -> Host:
    """A worker of many versions, none of which is loaded yet. Raises LoadError."""
    reserve(file_bytes=FILE_BYTES)
    share_memory()
    settings = SharedSettings.load(section)
    host = Host(root, settings)
    os.nice(settings.nice)
    begin_report(host, root)
    return host


def end_worker() -> None:
    """End the process once its reply is sent; TorchServe starts another one."""
    threading.Timer(REPLY_SENT_S, os._exit, args=(1,)).start()


def quiet_server_logs() -> None:
    """TorchServe's own worker code writes several lines per batch, each parsed again by the Java side."""
    for name in (None, "ts.metrics.caching_metric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    log.setLevel(logging.INFO)  # one line when a version is loaded
