"""A model's folder, made of the user's own file and the feature specification that belongs to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from handlers.core.task import Task
from handlers.features import FeaturesInvalid, Specification, specification_of, write_features
from scripts.core.errors import UserError
from scripts.core.faults import listed
from scripts.core.yaml_text import YamlInvalid, read_yaml

MODEL = "model"


def from_file(path: Path, features: Path | None, task: type[Task[Any, Any]], work: Path) -> Path:
    """Copy both into a folder below `work` as the task's archives have them. Raises UserError."""
    if path.suffix not in task.model_suffixes:
        known = ", ".join(task.model_suffixes) or "a folder written by save_pretrained"
        raise UserError(f"{path}: this task is made from {known}")
    if features is None:
        raise UserError(
            f"{path}: --features is missing; a model for tables needs the specification of its features, see the "
            "README's section Tables"
        )
    folder = work / MODEL
    folder.mkdir()
    write_features(read_specification(features), folder)
    shutil.copyfile(path, folder / f"{MODEL}{path.suffix}")
    return folder


def read_specification(path: Path) -> Specification:
    """From YAML or JSON. Raises UserError listing every fault."""
    try:
        return specification_of(read_yaml(path.read_bytes()))
    except (OSError, YamlInvalid) as err:
        raise UserError(f"{path}: {err}") from err
    except FeaturesInvalid as err:
        raise UserError(listed(path, err.faults)) from err
