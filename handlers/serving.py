"""A version as a server has it: loaded, held to its samples, with cache, log and protocols round it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marctl_handlers.archive import archive_digest, check_samples, load
from marctl_handlers.core.devices import device_for, take_gpu
from marctl_handlers.core.errors import HandlerError, ModelFault, NotSupported
from marctl_handlers.core.forms import encode_json, refusal
from marctl_handlers.core.messages import Model, Reply, Request
from marctl_handlers.core.pipeline import Pipeline, printable
from marctl_handlers.protocols.open_inference import forms
from marctl_handlers.redis.cache import open_cache
from marctl_handlers.redis.features import open_features
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.redis.log import LogWriter, PredictionLog, open_log

log = logging.getLogger(__name__)

FEEDBACK = "feedback"
"""What follows a version's path where a true label comes instead of a question (TorchServe's header `url_path`)."""
PATH_HEADER = "url_path"
"""TorchServe's name for what follows the version in a request's path; no client can set it."""


@dataclass(frozen=True)
class Stores:
    """What the versions of one process share on their way to Redis; a version alone has its own."""

    cache_link: RedisLink | None = None
    """This one and the next are for the thread that answers."""
    features_link: RedisLink | None = None
    log_link: RedisLink | None = None
    log_writer: LogWriter | None = None


OWN_STORES = Stores()


def open_version(
    root: Path, model: Model, handler: Mapping[str, Any] | None, gpu: int | None = None, stores: Stores = OWN_STORES
) -> Pipeline:
    """The version of an archive extracted to `root`, ready for requests. `gpu`: the one that this worker may use.

    Raises LoadError.
    """
    pipeline = load(root, model, handler, own_device(handler, gpu))
    check_samples(pipeline, root)
    open_stores(pipeline, archive_digest(root), stores)
    return pipeline


def own_device(handler: Mapping[str, Any] | None, gpu: int | None) -> str:
    """The device that a version's settings ask for, with its part of the memory. Raises LoadError."""
    section = handler or {}
    device = device_for(str(section.get("device")), gpu)
    if device != "cpu":
        take_gpu(device, int(section.get("workers_per_gpu", 1)))
    return device


def open_stores(pipeline: Pipeline, digest: str, stores: Stores = OWN_STORES) -> None:
    """Cache, log, features and protocols: what a server adds. `digest`: of the archive."""
    task, model = pipeline.task, pipeline.model
    pipeline.forms.update(forms(pipeline))
    pipeline.cache = open_cache(task, model, digest, stores.cache_link)
    pipeline.log = open_log(task, model, digest, stores.log_link, stores.log_writer)
    task.store = open_features(task, stores.features_link)
    if pipeline.explainer is not None:
        pipeline.explainer.log = pipeline.log
        pipeline.explainer.task.store = task.store


def close_stores(pipeline: Pipeline) -> None:
    """For a version that leaves a process which goes on; what its log has queued is still written."""
    if isinstance(pipeline.log, PredictionLog):
        pipeline.log.leave()


def answer_all(pipeline: Pipeline, requests: Sequence[Request]) -> list[Reply]:
    """One reply per request, in order, whether it asks or brings a label."""
    labels = [request.header(PATH_HEADER) == FEEDBACK for request in requests]
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
