"""Loaded versions of tabular tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marctl_handlers.archive import pipeline_of
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks import find_task


def load_tabular(folder: Path, *, task: str = "tabular", **settings: Any) -> Pipeline:
    kind = find_task(task)
    return pipeline_of(kind, folder, Model("loans", "1.0"), kind.settings_type.load({"task": task, **settings}), "cpu")
