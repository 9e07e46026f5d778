"""Models and tokenizers from a `save_pretrained` folder; nothing is fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from marctl_handlers.core.errors import LoadError

USUAL_TOKENS = 128
RESERVED_POSITIONS = 2
"""RoBERTa counts positions from padding_idx + 1, so two of them can't be used."""
LEAST_VOCABULARY = 0.5
"""Share of the model's vocabulary that its tokenizer must have; models round their tables up by far less."""

BARE = "AutoModel"
"""The class of models without a task's head."""


def load_tokenizer(folder: Path) -> Any:
    """The folder's own tokenizer. Raises LoadError where it has none, or one that is not the model's."""
    quiet()
    from transformers import AutoTokenizer

    config = read_config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as err:
        raise LoadError(f"{folder.name}/ does not hold a tokenizer: {first_line(err)}; {save_it(folder)}") from err
    files = {"tokenizer.json", *(getattr(tokenizer, "vocab_files_names", None) or {}).values()}
    if not any((folder / name).is_file() for name in files):
        # transformers makes up a vocabulary of a few special tokens then, to which every word is unknown.
        raise LoadError(f"{folder.name}/ holds no tokenizer file ({', '.join(sorted(files))}); {save_it(folder)}")
    refuse_other_vocabulary(folder, config, len(tokenizer))
    return tokenizer


def refuse_other_vocabulary(folder: Path, config: Mapping[str, Any], given: int) -> None:
    """Raise LoadError where the tokenizer's number of tokens shows that it is not the model's."""
    wanted = config.get("vocab_size")
    if isinstance(wanted, int) and not LEAST_VOCABULARY * wanted <= given <= wanted:
        raise LoadError(
            f"{folder.name}/ holds a tokenizer of {given:,} tokens, but the model knows {wanted:,}: it is another "
            f"model's; {save_it(folder)}"
        )


def load_model(folder: Path, hub_class: str, dtype: torch.dtype) -> Any:
    """A model of this transformers class, without gradients. Raises LoadError if weights are missing or do not fit."""
    quiet()
    import transformers
    from safetensors import SafetensorError

    refuse_other_head(folder, hub_class)
    try:
        model, report = getattr(transformers, hub_class).from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as err:
        raise LoadError(f"{folder.name}/ does not hold a model for {hub_class}: {first_line(err)}") from err
    if lacking := needed(report["missing_keys"], hub_class):
        missing = ", ".join(lacking[:5])
        head = "" if hub_class == BARE else ", head included,"
        raise LoadError(f"the weights lack {missing}; fine-tune the model with {hub_class}{head} and save it")
    return model.eval().requires_grad_(False)


def needed(missing: Iterable[str], hub_class: str) -> list[str]:
    """Those of the missing weights that answers depend on: without a task's head nobody reads the pooler, whose weights
    many such folders lack."""
    return sorted(name for name in missing if hub_class != BARE or not name.startswith("pooler."))


def refuse_other_head(folder: Path, hub_class: str) -> None:
    """Raise LoadError for a model with the head of another task, whose weights may even have the same shapes."""
    head = hub_class.removeprefix("AutoModel")
    for architecture in read_config(folder).get("architectures") or []:
        if head and not str(architecture).endswith(head):
            raise LoadError(
                f"{folder.name}/ holds a {architecture}, which has another head or none; expected a model fine-tuned "
                f"with {hub_class} and saved with it"
            )


def token_limit(folder: Path, usual: int = USUAL_TOKENS) -> int:
    """The usual limit of a row's tokens, or less where the model's positions end earlier."""
    tokenizer = load_tokenizer(folder)
    positions = int(read_config(folder).get("max_position_embeddings") or usual + RESERVED_POSITIONS)
    return int(min(usual, positions - RESERVED_POSITIONS, tokenizer.model_max_length))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; raises LoadError if it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as err:
        raise LoadError(f"{folder.name}/config.json is missing; rebuild the archive with `marctl build`") from err
    except ValueError as err:
        raise LoadError(f"{folder.name}/config.json is not JSON ({err}); save the model again") from err
    if not isinstance(config, dict):
        raise LoadError(f"{folder.name}/config.json is not a JSON object; save the model again")
    return config


def save_it(folder: Path) -> str:
    return f"save it beside the model: tokenizer.save_pretrained('{folder.name}')"


def first_line(err: Exception) -> str:
    """Without the pages of advice that follow in some of transformers' errors."""
    return str(err).strip().partition("\n")[0]


def quiet() -> None:
    """A worker must never wait for a hub; this also keeps progress bars out of the server's log."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from transformers.utils import logging

    logging.disable_progress_bar()
