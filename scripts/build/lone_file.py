"""A model's folder, made of the user's own file and the feature specification that belongs to it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from marctl.build.specification import read_specification
from marctl.core.errors import UserError
from marctl_handlers.core.task import Task
from marctl_handlers.features import (
    Features,
    FeaturesInvalid,
    Specification,
    arrow_schema,
    resolve_table,
    write_features,
)
from marctl_handlers.features.tables import BACKGROUND_FILE, rows_of

MODEL = "model"
BACKGROUND_ROWS = 100


@dataclass(frozen=True)
class ModelFile:
    """A model's own file, with what belongs to it."""

    path: Path
    features: Path | None = None
    """Its feature specification, in YAML or JSON."""
    background: Path | None = None
    """A CSV or Parquet file of rows like those that it was trained on; explanations compare with some of them."""

    def lay_out(self, task: type[Task[Any, Any]], work: Path) -> Path:
        """Copy them into a folder below `work` as the task's archives have them. Raises UserError."""
        if self.path.suffix not in task.model_suffixes:
            known = ", ".join(task.model_suffixes) or "a folder written by save_pretrained"
            raise UserError(f"{self.path}: this task is made from {known}")
        if self.features is None:
            raise UserError(
                f"{self.path}: --features is missing; a model for tables needs the specification of its features, see "
                "handlers/README.md, section Tables"
            )
        folder = work / MODEL
        folder.mkdir()
        specification = read_specification(self.features)
        write_features(specification, folder)
        if self.background is not None:
            rows = sampled(self.background, specification)
            (folder / BACKGROUND_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        shutil.copyfile(self.path, folder / f"{MODEL}{self.path.suffix}")
        return folder


def sampled(path: Path, specification: Specification) -> Sequence[dict[str, Any]]:
    """Rows of a table as requests would bring them: all, or a sample that is the same every time. Raises UserError."""
    try:
        table = read_table(path, specification)
        resolved = resolve_table(Features(specification), table)
        good = np.setdiff1d(np.arange(table.num_rows), list(resolved.faults))
        if not len(good):
            raise FeaturesInvalid([f"no row fits the specification, of {table.num_rows}"])
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: {err}") from err
    chosen = np.random.default_rng(0).choice(good, min(BACKGROUND_ROWS, len(good)), replace=False)
    return rows_of(table.take(np.sort(chosen)), specification)


def read_table(path: Path, specification: Specification) -> Any:
    """A CSV or Parquet file, its columns of the specification's types. Raises OSError or ValueError (ArrowInvalid)."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path)
    from pyarrow import csv

    schema = arrow_schema(specification)
    types = dict(zip(schema.names, schema.types, strict=True))
    return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True))
