"""Loaded versions as a worker has them, from a folder that `save_pretrained` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marctl_handlers.archive import pipeline_of
from marctl_handlers.core.messages import Model, Reply, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.protocols.open_inference import forms
from marctl_handlers.tasks import find_task


def load(
    folder: Path, *, task: str = "multiple_choice", name: str = "quiz", version: str = "1.0", **settings: Any
) -> Pipeline:
    """In float32, with rows of at most 64 tokens and requests of any size, unless the settings say otherwise."""
    task_type = find_task(task)
    section = {"task": task, "precision": "float32", "max_tokens": 64, "max_request_tokens": 1_000_000} | settings
    pipeline = pipeline_of(task_type, folder, Model(name, version), task_type.settings_type.load(section), "cpu")
    pipeline.forms.update(forms(pipeline))
    return pipeline


def ask(pipeline: Pipeline, bodies: Sequence[Any], **headers: str) -> list[tuple[int, Any]]:
    """Code and decoded body of each request's reply, all asked in one batch."""
    return [(reply.code, json.loads(reply.body)) for reply in send(pipeline, bodies, **headers)]


def send(pipeline: Pipeline, bodies: Sequence[Any], **headers: str) -> list[Reply]:
    """The replies to one batch; every request has these headers, with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [body if body is None or isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    return pipeline.answer([Request(body, f"id-{i}", headers=named) for i, body in enumerate(raw)])
