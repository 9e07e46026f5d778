"""`marctl train` for a table: from a recipe and labelled rows to a model, its calibration, figures and a model card."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from marctl.build.lone_file import MODEL
from marctl.build.recipe import Version, read_version
from marctl.build.recipe_text import recipe_text
from marctl.build.record import answered
from marctl.build.specification import read_specification
from marctl.build.table_training import Learner, TableTraining
from marctl.core.errors import UserError
from marctl.core.files import alone, write_atomically
from marctl.train.calibrate import Learned, Rows, Unlearnable, learn
from marctl.train.calibration_job import write as write_recipe
from marctl.train.evaluate import Labelled, ask
from marctl.train.metadata import write_metadata
from marctl.train.reliability import Floats
from marctl.train.tables.baselines import baselines
from marctl.train.tables.cross_validation import Fold, Procedure, Trained
from marctl.train.tables.figures import beside, decisions, figures, reliability_table
from marctl.train.tables.groups import group_record, groups_of
from marctl.train.tables.table import LabelledTable, questions_of, read_table, refuse_rare
from marctl_handlers.archive import pipeline_of
from marctl_handlers.core.messages import Model
from marctl_handlers.features import write_features

Notify = Callable[[str], None]
SAME = 1e-4
"""By how much the written model may depart from the trained one: it computes in float32."""
ANSWERED = ("prediction", "label", "imputed")
"""Fields of a sample's answer that are recorded where the recipe expects nothing yet."""
LIBRARIES = {".ubj": ("xgboost-cpu",), ".pt": ("torch",), ".onnx": ("scikit-learn", "skl2onnx", "onnxruntime")}
"""Whose versions are recorded, by the model's file."""


@dataclass(frozen=True)
class Measured:
    """What cross-validation showed: each row's probability from a training without it, before and after calibration."""

    probabilities: Floats
    folds: Sequence[Fold]
    chosen: Sequence[int]
    learned: Learned

    @property
    def calibrated(self) -> Floats:
        return self.learned.held_out.confidence


def train_table(version: Version, path: Path, notify: Notify) -> list[Path]:
    """Write the model's folder, the recipe's calibration and samples, the figures and the card; returns the files.

    Nothing is written before all of it is made. Raises UserError.
    """
    text, training = recipe_text(version.folder), version.recipe.table_training
    assert training is not None
    labels = version.settings.labels
    specification = read_specification(version.folder / training.features)
    table = read_table(path, specification, training.target, labels)
    refuse_rare(table, training.target, labels, training.folds)
    procedure = Procedure(specification, training.candidates, training.folds, training.seed)
    trained, chosen = procedure.train(table)
    notify(f"{version}: {table.path.name}, {len(table):,} rows; {told(training.candidates[chosen])}")
    measured = measure(procedure, table, lambda said: notify(f"{version}: cross-validation, {said}"))
    record = {
        "trained": datetime.now(UTC).date().isoformat(),
        "trained_with": trained_with(training, chosen),
        "training_files": {path.name: {"sha256": table.sha256, "questions": len(table)}},
        "target": training.target,
        "groups": training.groups,
        "cross_validation": cross_validation(version, training, procedure, table, measured),
    }
    with tempfile.TemporaryDirectory(prefix="marctl-train-") as work:
        model = Path(work, MODEL)
        write_model(version, model, trained, training.suffix, table)
        calibration = measured.learned.calibration
        settings = msgspec.structs.replace(version.settings, calibration=calibration)
        samples = answered(version, model, settings, ANSWERED)
        write_recipe(version.folder, text, calibration, samples)  # which refuses if somebody changed it meanwhile
        files = replace_folder(version, model)
    write_metadata(read_version(version.folder), record)
    return files


def told(learner: Learner) -> str:
    """`xgboost, depth 3, ...`."""
    settings = msgspec.to_builtins(learner)
    return ", ".join([str(settings.pop("kind")), *(f"{name.replace('_', ' ')} {v}" for name, v in settings.items())])


def measure(procedure: Procedure, table: LabelledTable, step: Notify) -> Measured:
    """Raises UserError where the rows determine no calibration."""
    found, folds, chosen = procedure.held_out(table, step)
    rows = Rows(np.column_stack([1 - found, found]).tolist(), table.labels.tolist(), [table.path.stem] * len(table))
    try:
        return Measured(found, folds, chosen, learn(rows, "event"))
    except Unlearnable as err:
        raise UserError(f"{table.path}: {err}") from err


def cross_validation(
    version: Version, training: TableTraining, procedure: Procedure, table: LabelledTable, measured: Measured
) -> dict[str, Any]:
    """Figures for metadata.yaml and the model card."""
    learned, hit = measured.learned, table.labels.astype(float)
    calibrated, cut = measured.calibrated, version.settings.cut
    others = baselines(procedure.specification, table, measured.folds, training.seed)
    before, after = (figures(p, table.labels, measured.folds) for p in (measured.probabilities, calibrated))
    costs = version.settings.costs
    pair = None if costs is None else (costs.false_positive, costs.false_negative)
    return {
        "folds": training.folds,
        "chosen_by_fold": [told(training.candidates[i]) for i in measured.chosen],
        "uncalibrated": before,
        "calibrated": after,
        "calibration": {
            "form": learned.form,
            "log_loss_by_form": {name: round(loss, 4) for name, loss in learned.log_losses.items()},
        },
        "baselines": beside(others, measured.probabilities, table.labels, measured.folds),
        "quoted_baselines": training.baselines,
        "decisions": decisions(calibrated, table.labels, cut, pair),
        "reliability": reliability_table(calibrated, table.labels),
        "groups": [
            group_record(group, calibrated, hit, calibrated >= cut)
            for group in groups_of(table, procedure.specification, training.groups)
        ],
    }


def trained_with(training: TableTraining, chosen: int) -> dict[str, Any]:
    return {
        "learner": msgspec.to_builtins(training.candidates[chosen]),
        "candidates": len(training.candidates),
        "seed": training.seed,
        **{name: importlib.metadata.version(name) for name in LIBRARIES[training.suffix]},
    }


def write_model(version: Version, folder: Path, trained: Trained, suffix: str, table: LabelledTable) -> None:
    """Specification and model. Raises UserError if the version's task, which reads them, scores the table otherwise."""
    folder.mkdir()
    write_features(trained.features.specification, folder)
    trained.model.save(folder / f"{MODEL}{suffix}")
    settings = msgspec.structs.replace(version.settings, calibration=None)
    pipeline = pipeline_of(version.task, folder, Model(version.model, version.version), settings, "cpu")
    questions = questions_of(table, trained.features.specification, version.task)
    outcomes, _ = ask(pipeline, table.path, [Labelled(question, None) for question in questions], pipeline.outcomes)
    served = [pipeline.task.probabilities(outcome)[1] for outcome in outcomes]
    most = float(np.abs(np.array(served) - trained.probabilities(table)).max())
    if most > SAME:
        raise UserError(
            f"{version}: the written model's probabilities depart from the trained one's by up to {most:.1e}"
        )


def replace_folder(version: Version, model: Path) -> list[Path]:
    """The recipe's weights are these files from now on; other models' files leave it."""
    target = version.folder / str(version.recipe.weights.directory)
    with alone(version.folder):
        target.mkdir(parents=True, exist_ok=True)
        files = sorted(model.iterdir())
        for file in files:
            write_atomically(target / file.name, file.read_bytes())
        for old in target.glob(f"{MODEL}.*"):
            if old.name not in {file.name for file in files}:
                old.unlink()
    return [target / file.name for file in files]
