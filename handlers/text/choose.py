"""Which runtime computes a model: packed rows where the model and the device allow it, else the model's own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.hub import load_model
from marctl_handlers.text.packed_bert import MODEL_TYPES, can_pack
from marctl_handlers.text.packed_runtime import PackedRuntime
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.processor import Processor
from marctl_handlers.text.runtime import Runtime
from marctl_handlers.text.settings import Precision, TextSettings
from marctl_handlers.text.tokenization import Row, RowEncoder
from marctl_handlers.text.torch_runtime import TorchRuntime


def load_runtime(
    folder: Path,
    hub_class: str,
    encoder: RowEncoder,
    settings: TextSettings,
    device: str,
    samples: Sequence[Row] = (),
    processor: Processor | None = None,
    pooling: Pooling | None = None,
) -> Runtime:
    """The fastest runtime for a `save_pretrained` folder; raises LoadError naming the cure.

    Its values are the model's logits, or with `pooling` the vectors that it makes of the last layer's states.
    `samples` show the ranges of 8-bit integers. Without fast ones an int8 version is computed like `auto`.
    """
    torch.set_num_threads(settings.threads)
    processor = processor or Processor.here()
    numbers = numbers_for(settings.precision, device, processor)
    dtype = torch.float32 if numbers == "int8" else getattr(torch, numbers)
    model = load_model(folder, hub_class, dtype)
    packed = can_pack(model.config)
    if settings.precision == "int8" and not packed:
        raise LoadError(
            f"precision is int8, which is for {', '.join(sorted(MODEL_TYPES))} models with GELU; "
            f"this is a {model.config.model_type} model: set `precision: auto` in model.yaml"
        )
    if settings.precision == "int8" and not samples:
        raise LoadError("precision is int8, but there is no samples.json to learn ranges from; set `precision: auto`")
    if device != "cpu" or not packed:
        return TorchRuntime.of(model, encoder, settings, device, pooling)
    if numbers != "int8":
        return PackedRuntime.of(model, encoder, settings, processor, dtype, pooling)
    return PackedRuntime.quantized(model, encoder, settings, processor, samples, pooling)


def numbers_for(precision: Precision, device: str, processor: Processor) -> str:
    """`int8` or the name of a torch type; graphics cards multiply bfloat16 numbers, and no 8-bit ones of ours."""
    if device == "cpu":
        return processor.numbers(precision)
    return "float32" if precision == "float32" else "bfloat16"
