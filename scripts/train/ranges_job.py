"""`marctl quantize`: from a recipe's weights and example questions to the ranges of 8-bit integers in its folder."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from marctl.build.build import digest, lay_out_model, write_json
from marctl.build.recipe import Version, read_version
from marctl.build.recipe_text import recipe_text, replace_text, with_section
from marctl.core.errors import UserError
from marctl.train.evaluate import read_rows
from marctl.train.metadata import write_metadata
from marctl.train.questions import dataset_name
from marctl_handlers.archive import MODEL_FOLDER, pipeline_of
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Model
from marctl_handlers.core.samples import SAMPLES_FILE
from marctl_handlers.text.ranges import RANGES_FILE, InputRange, write_ranges

QUESTIONS = 128
"""Of all data sets together. The ranges of 16 are nearly as good as those of 128."""
LARGEST_ERROR = 0.025
"""A product whose output 8 bits move further stays in floating point. Of mcqa 2.0 those are the second ones of the
feed-forward blocks, whose inputs have a few values that are four times as large as all others."""

Notify = Callable[[str], None]


def quantize(folder: Path, files: Sequence[Path], notify: Notify = lambda _: None) -> dict[str, Any]:
    """Learn the ranges from files of labelled rows, whose labels do not matter, and write them beside the recipe.

    Returns what metadata.yaml records of it. Raises UserError; the recipe stays as it is then.
    """
    text, version = recipe_text(folder), read_version(folder)
    refuse(version)
    requests = drawn(files, version)
    notify(f"{version}: learning ranges from {len(requests)} questions")
    learned = ranges_of(version, requests)
    kept = {name: found for name, found in learned.items() if found.error <= LARGEST_ERROR}
    if not kept:
        raise UserError(f"{version}: 8 bits change the outputs of all its products too much; it stays as it is")
    write_ranges(folder / RANGES_FILE, kept)
    changed = with_section(with_section(text, "precision", "int8"), "ranges", RANGES_FILE)
    replace_text(folder, text, changed)
    record = {
        "learned": datetime.now(UTC).date().isoformat(),
        "questions": len(requests),
        "products": len(learned),
        "in_floating_point": {name: round(found.error, 4) for name, found in learned.items() if name not in kept},
        "files": {dataset_name(path): {"sha256": digest(path)} for path in files},
    }
    write_metadata(read_version(folder), {"ranges": record})
    return record


def refuse(version: Version) -> None:
    if not hasattr(version.settings, "precision"):
        raise UserError(f"{version}: task {version.recipe.task} has no precision to choose")


def drawn(files: Sequence[Path], version: Version) -> list[dict[str, Any]]:
    """As many requests of each file, by chance, but the same whenever it is asked."""
    requests = []
    for path in files:
        rows = read_rows(path, version.task, skip_refused=True)
        chosen = random.Random(dataset_name(path)).sample(rows, min(len(rows), -(-QUESTIONS // len(files))))
        requests += [msgspec.to_builtins(row.question) for row in chosen]
    return requests


def ranges_of(version: Version, requests: Sequence[Mapping[str, Any]]) -> dict[str, InputRange]:
    """As the version finds them when it is loaded with these requests for samples. Raises UserError."""
    settings = msgspec.structs.replace(version.settings, precision="int8")
    alone = dataclasses.replace(version, recipe=msgspec.structs.replace(version.recipe, ranges=None))
    with tempfile.TemporaryDirectory(prefix="marctl-quantize-") as work:
        model = Path(work, MODEL_FOLDER)
        lay_out_model(alone, model)
        write_json(Path(work, SAMPLES_FILE), [{"request": request, "expected": {}} for request in requests])
        try:
            task: Any = pipeline_of(version.task, model, Model(version.model, version.version), settings, "cpu").task
        except LoadError as err:
            raise UserError(f"{version}: {err}") from err
    found: Mapping[str, InputRange] | None = getattr(task.model, "ranges", None)
    if found is None:
        raise UserError(f"{version}: this processor has no fast 8-bit products to try the ranges with; use another one")
    return dict(found)
