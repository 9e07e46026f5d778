"""`marctl train` for a version that is made of others: what it learns from its members' answers to labelled rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from marctl.build.build import digest
from marctl.build.recipe import Version
from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.train.evaluate import BATCH, Labelled, open_archive, read_rows
from marctl.train.metadata import write_metadata
from marctl.train.questions import dataset_name, find_files
from marctl_handlers.core.composite import Composite
from marctl_handlers.core.errors import HandlerError

FOREVER = float("inf")


def learn_from_members(
    version: Version, data: Path, split: str, store: Path, notify: Callable[[str], None]
) -> list[Path]:
    """Write the files that the version's task learns beside its recipe; returns their paths."""
    paths = find_files(data, split)
    rows = [row for path in paths for row in read_rows(path, version.task)]
    probabilities, labels = [], []
    for member in version.members:
        notify(f"{version}: asking {member} {len(rows):,} questions")
        found = list(asked(member, rows, store))
        probabilities.append([row for row, _ in found])
        labels = [label for _, label in found]
    assert issubclass(version.task, Composite)
    try:
        content = version.task.learn(version.settings, probabilities, labels)
    except ValueError as err:
        raise UserError(f"{version}: {err}") from err
    for name, value in content.items():
        write_atomically(version.folder / name, json.dumps(value, indent=1) + "\n")
    files = {dataset_name(path): {"sha256": digest(path), "split": split} for path in paths}
    write_metadata(version, {"trained": datetime.now(UTC).date().isoformat(), "training_files": files})
    return [version.folder / name for name in content]


def asked(member: Version, rows: Sequence[Labelled], store: Path) -> Iterator[tuple[list[float], int]]:
    """A member's probabilities for each row, and the place of the true one. Raises UserError if it fails on any."""
    path = store / member.archive_name
    if not path.exists():
        raise UserError(f"{path}: not built; run: marctl build {member}")
    with open_archive(path) as pipeline:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            outcomes = pipeline.task.predict([row.question for row in batch], FOREVER)
            for row, outcome in zip(batch, outcomes, strict=True):
                if outcome is None or isinstance(outcome, HandlerError):
                    raise UserError(f"{member} does not answer {row.question!r}: {outcome}")
                label = pipeline.task.label_index(row.question, row.label)
                yield list(pipeline.task.probabilities(outcome)), label
