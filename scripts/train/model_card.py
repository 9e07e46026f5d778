"""The version's model card, written from its recipe and its recorded training and accuracy."""

from __future__ import annotations

from pathlib import Path

import msgspec

from marctl.build.recipe import Version, Weights
from marctl.core.files import write_atomically
from marctl.train.tables.card import learner_told, table_lines

CARD_FILE = "MODEL_CARD.md"


def write_model_card(version: Version) -> Path:
    path = version.folder / CARD_FILE
    write_atomically(path, model_card(version))
    return path


def learned_from(model: str, teacher: str | dict[str, str] | None) -> str:
    """A recipe's `training.teacher` in words."""
    if not teacher:
        return "fine-tuned"
    if isinstance(teacher, str):
        return f"distilled from {model} {teacher}"
    taught = {name: sorted(key for key in teacher if teacher[key] == name) for name in sorted(set(teacher.values()))}
    return "fine-tuned; distilled " + ", ".join(f"on {' and '.join(sets)} from {name}" for name, sets in taught.items())


def ranges_lines(version: Version) -> list[str]:
    """Which products are in 8-bit integers, and where their ranges come from; nothing if the recipe names none."""
    known = version.metadata.get("ranges")
    if not known or not version.recipe.ranges:
        return []
    left = known["in_floating_point"]
    found = f"{known['products'] - len(left)} of {known['products']} matrix products of the layers"
    rest = f"; in floating point: {', '.join(f'layer {name}' for name in left)}" if left else ""
    return [
        "",
        "## 8-bit integers",
        "",
        f"Where the processor has fast ones, {found} are computed in them{rest}. Weights are not changed by it. Ranges "
        f"were learned {known['learned']} from {known['questions']} questions of {', '.join(known['files'])}.",
    ]


def calibration_lines(version: Version) -> list[str]:
    """How confidence was calibrated, and what it was worth on held-out rows; nothing if the recipe has no calibration,
    or one that was written by hand since."""
    known = version.metadata.get("calibration")
    if not known or known["map"] != msgspec.to_builtins(version.recipe.calibration):
        return []
    lines = [
        "",
        "## Calibration",
        "",
        f"Learned {known['learned']}: {known['form']}. Expected calibration error (15 bins, with half its 95 % "
        "interval) and Brier score of the rows it was learned from, each held out in turn (10 folds):",
        "",
        "| data set | rows | ECE without | ECE | exact confidences would show | Brier without | Brier |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, after in known["held_out"].items():
        before = known["uncalibrated"][name]
        errors = (f"{one['ece']:.3f} ± {one['ece_interval_95']:.3f}" for one in (before, after))
        lines.append(
            f"| {name} | {after['rows']:,} | {' | '.join(errors)} | {after['ece_of_exact']:.3f} "
            f"| {before['brier']:.3f} | {after['brier']:.3f} |"
        )
    return lines


def model_card(version: Version) -> str:
    """Markdown; what is not known is left out."""
    recipe, known = version.recipe, version.metadata
    weights, training = recipe.weights, recipe.training
    source = weights.hub or (f"{weights.package} (Python package)" if weights.package else "a local folder")
    lines = [f"# {version.model} {version.version}", "", recipe.description.strip(), ""]
    lines.append(f"- Task: {recipe.task.replace('_', ' ')}")
    if most := getattr(version.settings, "max_tokens", None):
        lines[-1] += f", at most {most} tokens a choice"
    if version.members:
        lines.append(f"- Members: {', '.join(map(str, version.members))}")
    if weights != Weights() and recipe.table_training is None:
        lines.append(f"- Base weights: {source}")
    if weights.layers is not None:
        lines.append(f"- Encoder layers kept: {', '.join(map(str, weights.layers))}")
    if recipe.licence:
        lines.append(f"- Licence: {recipe.licence}")
    if training is not None and "trained" in known:
        how = learned_from(version.model, training.teacher)
        if training.start:
            how += f", starting from {training.start}"
        runs = "; ".join(f"{run.epochs} epoch{'s' * (run.epochs > 1)}, seed {run.seed}" for run in training.runs)
        mean = f"the mean of {len(training.runs)} runs: " if len(training.runs) > 1 else ""
        lines.append(f"- Trained: {known['trained']}, {how}, {mean}{runs}")
    if recipe.table_training is not None and "trained" in known:
        lines.append(f"- Trained: {known['trained']}, {learner_told(version)}")
    if recipe.data:
        lines += ["", "## Data", "", "| data set | source | licence |", "|---|---|---|"]
        lines += [f"| {data.name} | {data.source} | {data.licence} |" for data in recipe.data]
    for split, scores in known.get("accuracy", {}).items():
        lines += [
            "",
            f"## Accuracy, {split} split",
            "",
            "| data set | questions | accuracy, % | without rows repeated from training, % |",
            "|---|---|---|---|",
        ]
        for name, score in scores.items():
            unrepeated = f"{100 * score['accuracy_without_repeats']:.1f}" if "accuracy_without_repeats" in score else ""
            lines.append(f"| {name} | {score['questions']:,} | {100 * score['accuracy']:.1f} | {unrepeated} |")
    lines += ranges_lines(version)
    lines += calibration_lines(version)
    if version.recipe.table_training is not None and "cross_validation" in known:
        lines += table_lines(version)
    lines += [
        "",
        "Made by `marctl train`, `marctl eval --write` and `marctl calibrate`; change model.yaml, not this page.",
        "",
    ]
    return "\n".join(lines)
