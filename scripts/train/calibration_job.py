"""`marctl calibrate`: from a built version and labelled rows to the calibration in its recipe."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from marctl.build.build import build, digest, is_current, members_in, source_digest
from marctl.build.recipe import Version, read_version
from marctl.build.recipe_text import recipe_text, replace_text, with_section
from marctl.build.record import record_anew, rounded
from marctl.core.errors import UserError
from marctl.train.calibrate import Learned, Rows, apply, learn
from marctl.train.evaluate import ask, open_archive, read_rows, repeats
from marctl.train.metadata import write_metadata
from marctl.train.questions import dataset_name, find_files
from marctl.train.reliability import Judged, Reliability
from marctl_handlers.archive import answers
from marctl_handlers.core.calibration import Calibration
from marctl_handlers.core.pipeline import Pipeline

CHECKED_ROWS = 64
"""Asked again with the calibration, to see that the task applies it."""
SAME = 1e-6

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Calibrated:
    """What was learned from which rows; `rows.sets` names each row's data set."""

    learned: Learned
    rows: Rows

    def by_set(self, judged: Judged) -> dict[str, Judged]:
        """Each data set's rows, and `all` of them."""
        names = np.array(self.rows.sets)
        return {name: judged[names == name] for name in sorted(set(self.rows.sets))} | {"all": judged}

    def record(self) -> dict[str, Any]:
        """Figures for metadata.yaml."""
        learned = self.learned
        return {
            "form": learned.form,
            "map": msgspec.to_builtins(learned.calibration),
            "log_loss_by_form": {name: round(loss, 4) for name, loss in learned.log_losses.items()},
            "uncalibrated": {name: Reliability.of(some).record() for name, some in self.by_set(learned.before).items()},
            "held_out": {name: Reliability.of(some).record() for name, some in self.by_set(learned.held_out).items()},
        }


def calibrate(folder: Path, archive: Path, files: Sequence[Path], notify: Notify = lambda _: None) -> Calibrated:
    """Learn the calibration of a recipe's built archive from files of labelled rows, and write it into the recipe.

    Rows that stand in the training split are left out. Raises UserError; nothing is written then.
    """
    text = recipe_text(folder)
    version = read_version(folder)
    refuse(version, archive, files)
    notify(f"{version}: loading")
    with open_archive(archive) as pipeline:
        before = sample_answers(pipeline, version)
        pipeline.task.calibration = None
        asked, rows = labelled(pipeline, files)
        kind = version.gives_probabilities_of
        assert kind is not None
        found = Calibrated(learn(rows, kind), rows)
        pipeline.task.calibration = found.learned.calibration
        check_applied(pipeline, asked[:CHECKED_ROWS], found)
        samples = renewed(version, before, sample_answers(pipeline, version))
    write(folder, text, found.learned.calibration, samples)
    counts = Counter(rows.sets)
    used = {name: {"sha256": digest(path), "questions": counts[name]} for name, path in named(files).items()}
    written = {"learned": datetime.now(UTC).date().isoformat(), **found.record(), "files": used}
    write_metadata(read_version(folder), {"calibration": written})
    return found


def calibrate_trained(folder: Path, data: Path, notify: Notify) -> Calibrated | None:
    """After a training: forget the earlier weights' calibration, record what the samples are answered now, and learn a
    calibration from every `<data>/<set>/dev.jsonl`.

    None, with a word why, where that cannot be done; the trained weights stand in any case.
    """
    write(folder, recipe_text(folder), None, None)
    version = record_anew(read_version(folder), notify)
    if version.gives_probabilities_of is None:
        return None
    try:
        files = find_files(data, "dev")
        with tempfile.TemporaryDirectory(prefix="marctl-calibrate-") as store:
            archive, _ = build(version, Path(store), notify=notify)
            return calibrate(folder, archive, files)
    except UserError as err:
        notify(f"{version}: not calibrated: {err}")
        return None


def named(files: Sequence[Path]) -> dict[str, Path]:
    """By the data set's name. Raises UserError for two of one name."""
    found = {dataset_name(path): path for path in files}
    if len(found) < len(files):
        raise UserError("two of the files are of one data set by name; rename one, or put its rows into the other")
    return found


def refuse(version: Version, archive: Path, files: Sequence[Path]) -> None:
    """Raise UserError for what cannot be calibrated, or not from these files."""
    if version.gives_probabilities_of is None:
        raise UserError(
            f"{version}: task {version.recipe.task} gives no probabilities, so there is nothing to calibrate"
        )
    if not is_current(archive, source_digest(version, members_in(version, archive.parent))):
        state = "older than its recipe or its code" if archive.exists() else "not built"
        raise UserError(f"{archive}: {state}; run: marctl build {version}")
    trained = {known["sha256"] for known in version.metadata.get("training_files", {}).values()}
    for path in named(files).values():
        if digest(path) in trained:
            raise UserError(
                f"{path}: {version} was trained on this file, and is surer there than elsewhere; give held-back rows"
            )


def labelled(pipeline: Pipeline, files: Sequence[Path]) -> tuple[list[Any], Rows]:
    """Every question that the version was not trained on, and its row: what the model says by itself, and the label."""
    task = pipeline.task
    asked: list[Any] = []
    rows = Rows([], [], [])
    for path in files:
        read = read_rows(path, type(task))
        fresh = [row for row, known in zip(read, repeats(path, read, type(task)), strict=True) if not known]
        outcomes, _ = ask(pipeline, path, fresh, pipeline.outcomes)
        asked += [row.question for row in fresh]
        rows = Rows(
            [*rows.probabilities, *(list(task.probabilities(outcome)) for outcome in outcomes)],
            [*rows.labels, *(task.label_index(row.question, row.label) for row in fresh)],
            [*rows.sets, *(dataset_name(path) for _ in fresh)],
        )
    return asked, rows


def check_applied(pipeline: Pipeline, questions: Sequence[Any], found: Calibrated) -> None:
    """Raise UserError unless the loaded task answers with the calibration that it was given."""
    wanted = apply(found.learned.calibration, found.rows.probabilities[: len(questions)])
    for outcome, expected in zip(pipeline.outcomes(questions), wanted, strict=True):
        if not np.allclose(pipeline.task.probabilities(outcome), expected, rtol=0, atol=SAME):
            name = type(pipeline.task).__name__
            raise UserError(f"{name}.predict does not apply self.calibration; see handlers/core/calibration.py")


def sample_answers(pipeline: Pipeline, version: Version) -> list[dict[str, Any]]:
    return answers(pipeline, version.requests)


def renewed(
    version: Version, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """The recipe's samples with the fields of `expected` that the calibration changes; None if it changes none."""
    samples = []
    for sample, old, now in zip(version.recipe.samples, before, after, strict=True):
        changed = {name: rounded(now[name]) for name in sample.expected if name in now and old.get(name) != now[name]}
        samples.append({"request": sample.request, "expected": {**sample.expected, **changed}})
    return samples if samples != msgspec.to_builtins(version.recipe.samples) else None


def write(folder: Path, text: str, calibration: Calibration | None, samples: list[dict[str, Any]] | None) -> None:
    """Into the recipe, whose text was `text` when the work began. Raises UserError if somebody has changed it since."""
    changed = with_section(text, "calibration", msgspec.to_builtins(calibration))
    if samples is not None:
        changed = with_section(changed, "samples", samples)
    replace_text(folder, text, changed)
