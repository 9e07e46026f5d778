"""Records what a version answers to its sample requests, which every later build and start of it must answer again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from marctl.build.build import lay_out_model
from marctl.build.recipe import Version, read_version
from marctl.build.recipe_text import recipe_text, replace_text, with_section
from marctl.core.errors import UserError
from marctl_handlers.archive import answers, pipeline_of
from marctl_handlers.core.messages import Model
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task

STAMP = ("prediction_id", "model", "model_version", "latency_ms")
"""What every answer carries, whatever the request."""
DIGITS = 4
"""Of a recorded answer's numbers; far below every tolerance."""


def record_anew(version: Version, notify: Callable[[str], None]) -> Version:
    """Replace the answers that the recipe's samples expect by those of its weights now, in float32; tell each change.

    Raises UserError; nothing is written then.
    """
    if version.members:
        raise UserError(f"{version}: it is made of other versions; write what its samples expect by hand")
    text, settings = recipe_text(version.folder), version.settings
    if hasattr(settings, "precision"):
        settings = msgspec.structs.replace(settings, precision="float32")
    with tempfile.TemporaryDirectory(prefix="marctl-record-") as work:
        model = Path(work, "model")
        lay_out_model(version, model)
        samples = answered(version, model, settings)
    changes = [
        f"samples[{i}].{name}: {old.expected[name]} before, {now['expected'][name]} now"
        for i, (old, now) in enumerate(zip(version.recipe.samples, samples, strict=True))
        for name in old.expected
        if old.expected[name] != now["expected"][name]
    ]
    for change in changes:
        notify(f"{version}: {change}")
    if changes:
        replace_text(version.folder, text, with_section(text, "samples", samples))
    return read_version(version.folder)


def answered(version: Version, model: Path, settings: Settings, otherwise: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The recipe's samples with what the model in a folder answers: the fields that are expected, or `otherwise`."""
    given = own_answers(version.task, model, version.requests, settings)
    return [
        {
            "request": sample.request,
            "expected": {name: rounded(answer[name]) for name in sample.expected or otherwise},
        }
        for sample, answer in zip(version.recipe.samples, given, strict=True)
    ]


def own_answers(
    task: type[Task[Any, Any]], model: Path, requests: Sequence[Mapping[str, Any]], settings: Settings
) -> list[dict[str, Any]]:
    """What the task answers, without what every answer carries. Raises UserError if it fails on any."""
    from marctl.build.weights import quiet_transformers

    with quiet_transformers():
        given = answers(pipeline_of(task, model, Model("adopted", "0"), settings, "cpu"), list(map(dict, requests)))
    for answer in given:
        if "error" in answer:
            raise UserError(f"the task fails on a sample: {answer['detail']}")
    return [{name: value for name, value in answer.items() if name not in STAMP} for answer in given]


def rounded(value: Any) -> Any:
    """The same JSON value with short numbers."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {key: rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
