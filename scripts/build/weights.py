"""From a recipe's `weights` to a model and a tokenizer in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from marctl.build.delta import apply_delta, read_delta
from marctl.build.recipe import Version
from marctl.build.sources import locate
from marctl.core.errors import UserError
from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.hub import first_line, load_tokenizer, needed, refuse_other_head


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
            f"{version}: the weights lack {', '.join(untrained)}: the model has no trained head; "
            f"fine-tune it with {version.task.hub_class} and save it again"
        )
    return model, tokenizer


def load_base(version: Version) -> tuple[PreTrainedModel, Any, list[str]]:
    """The model before its delta, its tokenizer, and the parameters that the source lacks (set to zero)."""
    weights, hub_class = version.recipe.weights, str(version.task.hub_class)
    source = locate(version)
    options: dict[str, Any] = {"revision": weights.revision} if weights.hub and weights.revision else {}
    with quiet_transformers():
        try:
            refuse_others(Path(source), hub_class, trained=not weights.delta)
            model, report = getattr(transformers, hub_class).from_pretrained(
                source, dtype="auto", output_loading_info=True, **options
            )
            here = Path(source).is_dir()
            tokenizer = load_tokenizer(Path(source)) if here else AutoTokenizer.from_pretrained(source, **options)
        except LoadError as err:
            raise UserError(f"{version}: {err}") from err
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as err:
            raise UserError(f"{version}: cannot load a model by {hub_class} from {source}: {first_line(err)}") from err
    state = model.state_dict()
    with torch.no_grad():
        for name in report["missing_keys"]:
            state[name].zero_()
    if weights.layers is not None:
        keep_layers(model, weights.layers, version)
    return model.eval(), tokenizer, needed(report["missing_keys"], hub_class)


def refuse_others(folder: Path, hub_class: str, *, trained: bool) -> None:
    """Raise LoadError for a folder whose model has the head of another task; one to be trained may have any."""
    if trained and folder.is_dir():
        refuse_other_head(folder, hub_class)


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
