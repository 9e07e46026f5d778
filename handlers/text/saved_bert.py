"""The weights of a BERT or RoBERTa model from its file, without transformers' modelling code.

That code takes seconds of a worker's start and builds a module for each layer, of which packed rows need the weights
alone. Names are those of transformers/models/bert/modeling_bert.py and its RoBERTa twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from marctl_handlers.text.hub import BARE, read_config, refuse_other_head
from marctl_handlers.text.packed_bert import can_pack

WEIGHTS_FILE = "model.safetensors"
NEEDED = {
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "type_vocab_size",
    "vocab_size",
}
"""Of config.json; for what it leaves out transformers knows defaults."""


class SavedBert:
    """A model's parameters by their names, as attributes: `base_model.encoder.layer[0].output.dense.weight`."""

    def __init__(self, config: SimpleNamespace, parameters: Mapping[str, Tensor], prefix: str) -> None:
        self.config = config
        self.dtype = next(iter(parameters.values())).dtype
        whole = tree(parameters)
        self.base_model = getattr(whole, prefix) if prefix else whole
        self.base_model.config = config
        self.classifier = getattr(whole, "classifier", None)
        norms = [self.base_model.embeddings.LayerNorm]
        for layer in self.base_model.encoder.layer:
            norms += [layer.attention.output.LayerNorm, layer.output.LayerNorm]
            vars(layer.attention)["self"].attention_head_size = config.hidden_size // config.num_attention_heads
            vars(layer.attention)["self"].num_attention_heads = config.num_attention_heads
        for norm in norms:
            norm.eps = config.layer_norm_eps


def open_bert(folder: Path, hub_class: str, dtype: torch.dtype) -> SavedBert | None:
    """A model of this transformers class in `dtype`; None for one that takes transformers to load, or to refuse.

    Raises LoadError for a model with another head.
    """
    refuse_other_head(folder, hub_class)
    found = read_config(folder)
    config = SimpleNamespace(**found)
    if not found.keys() >= NEEDED or not can_pack(config):
        return None
    prefix = "" if hub_class == BARE else "bert" if config.model_type == "bert" else "roberta"
    wanted = shapes(config, prefix)
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in wanted.keys() & set(file.keys())}
            if there != wanted:
                return None
            # Copies lie as the processor likes them, and hold no file open.
            parameters = {name: file.get_tensor(name).to(dtype, copy=True) for name in wanted}
    except (OSError, SafetensorError):
        return None
    return SavedBert(config, parameters, prefix)


def shapes(config: Any, prefix: str) -> dict[str, tuple[int, ...]]:
    """Every parameter that answers depend on."""
    hidden, inner = config.hidden_size, config.intermediate_size
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int) -> None:
        found.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str) -> None:
        found.update({f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)})

    base = f"{prefix}." if prefix else ""
    rows = {
        "word": config.vocab_size,
        "position": config.max_position_embeddings,
        "token_type": config.type_vocab_size,
    }
    found |= {f"{base}embeddings.{name}_embeddings.weight": (count, hidden) for name, count in rows.items()}
    norm(f"{base}embeddings.LayerNorm")
    for number in range(config.num_hidden_layers):
        layer = f"{base}encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    if prefix:
        linear(f"{base}pooler.dense", hidden, hidden)
        linear("classifier", 1, hidden)
    return found


def tree(parameters: Mapping[str, Tensor]) -> Any:
    """Attributes of attributes, and a list where names are numbers."""
    root = SimpleNamespace()
    for name, parameter in parameters.items():
        *path, last = name.split(".")
        node = root
        for step in path:
            node = vars(node).setdefault(step, SimpleNamespace())
        vars(node)[last] = parameter
    return listed(root)


def listed(node: Any) -> Any:
    if not isinstance(node, SimpleNamespace):
        return node
    parts = {name: listed(part) for name, part in vars(node).items()}
    if all(name.isdecimal() for name in parts):
        return [parts[name] for name in sorted(parts, key=int)]
    return SimpleNamespace(**parts)
