"""The recipe lines that `marctl train` needs: told to paste where they are missing, or written by `--init`."""

from __future__ import annotations

from typing import Any

import msgspec

from marctl.build.recipe import Training, TrainingRun, Version, read_version
from marctl.build.recipe_text import dumped, recipe_text, replace_text, with_section
from marctl.core.errors import UserError

DELTA = "delta.safetensors"
RUN = TrainingRun(epochs=3, learning_rate=5e-5, seed=1)
"""What fine-tunes a small encoder on some thousand questions; larger models want a smaller rate."""
TABLE_LINES = """\
weights: {directory: model}
table_training:
  target: COLUMN              # of the table; its values are the recipe's `labels`
  features: features.yaml     # the specification of its features, beside the recipe
  candidates: [{kind: xgboost}]
"""


def training_of(version: Version) -> Training:
    """How the version is trained. Raises UserError with the lines that its recipe lacks."""
    training = version.recipe.training
    if training is not None and version.recipe.weights.delta is not None:
        return training
    if version.gives_probabilities_of == "event":
        raise UserError(f"{version}: its recipe does not say how to train it; add:\n\n{TABLE_LINES}".rstrip())
    refuse_task(version)
    raise UserError(
        f"{version}: its recipe does not say how to train it; `marctl train {version} --init` adds these lines, "
        f"or paste them into {version.folder}/model.yaml:\n\n{dumped(lines(version))}".rstrip()
    )


def lines(version: Version) -> dict[str, Any]:
    """The sections of the recipe that training needs, with what stands there already."""
    recipe = version.recipe
    weights = {**msgspec.to_builtins(recipe.weights), "delta": recipe.weights.delta or DELTA}
    if recipe.training is not None:
        return {"weights": weights}
    return {"weights": weights, "training": {"runs": [msgspec.to_builtins(RUN)]}}


def add_lines(version: Version) -> str:
    """Write them into the recipe; returns them as text, empty where it has them already. Raises UserError."""
    recipe = version.recipe
    if recipe.table_training is not None or (recipe.training is not None and recipe.weights.delta is not None):
        return ""
    refuse_task(version)
    text, added = recipe_text(version.folder), lines(version)
    changed = text
    for name, content in added.items():
        changed = with_section(changed, name, content)
    replace_text(version.folder, text, changed)
    read_version(version.folder)
    return dumped(added)


def refuse_task(version: Version) -> None:
    """Raise UserError for what `marctl train` cannot train."""
    if version.gives_probabilities_of != "choices" or version.task.hub_class is None or version.members:
        raise UserError(
            f"{version}: `marctl train` trains models that choose among choices, and tables; task "
            f"{version.recipe.task} is trained by other means, and its files are named by the recipe's `weights`"
        )
