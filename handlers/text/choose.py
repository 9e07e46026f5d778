"""Which runtime computes a model: packed rows where the model and the device allow it, else the model's own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.gpu.attention import can_attend, is_recent
from marctl_handlers.text.gpu.model import GpuBert
from marctl_handlers.text.gpu.runtime import GpuRuntime
from marctl_handlers.text.hub import load_model
from marctl_handlers.text.packed_bert import MODEL_TYPES, can_pack
from marctl_handlers.text.packed_runtime import PackedRuntime, watched
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.processor import Processor
from marctl_handlers.text.ranges import RANGES_FILE, read_ranges
from marctl_handlers.text.runtime import Runtime
from marctl_handlers.text.saved_bert import open_bert
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
    The ranges of 8-bit integers are in a file of the folder, or else `samples` show them. Without fast ones an int8
    version is computed like `auto`.
    """
    torch.set_num_threads(settings.threads)
    processor = processor or Processor.here()
    numbers = numbers_for(settings.precision, device, processor)
    dtype = torch.float32 if numbers == "int8" else getattr(torch, numbers)
    saved = open_bert(folder, hub_class, dtype) if device == "cpu" else None
    model = saved or load_model(folder, hub_class, dtype)
    packed = can_pack(model.config)
    if settings.precision == "int8" and not packed:
        raise LoadError(
            f"precision is int8, which is for {', '.join(sorted(MODEL_TYPES))} models with GELU; "
            f"this is a {model.config.model_type} model: set `precision: auto` in model.yaml"
        )
    ranges = read_ranges(folder / RANGES_FILE) if settings.precision == "int8" else None
    if settings.precision == "int8" and ranges is None and not samples:
        raise LoadError("precision is int8, but there is no samples.json to learn ranges from; set `precision: auto`")
    if device != "cpu":
        return gpu_runtime(model, encoder, settings, torch.device(device), pooling)
    if not packed:
        return TorchRuntime.of(model, encoder, settings, device, pooling)
    if numbers != "int8":
        return PackedRuntime.of(model, encoder, settings, processor, dtype, pooling)
    if ranges is None:
        ranges = watched(model, encoder, samples, pooling).learn_ranges()
    return PackedRuntime.quantized(model, encoder, settings, processor, ranges, pooling)


def gpu_runtime(
    model: Any, encoder: RowEncoder, settings: TextSettings, device: torch.device, pooling: Pooling | None = None
) -> Runtime:
    """Packed rows for the models and GPUs that allow it, padded ones for others."""
    if model.dtype != torch.bfloat16 or not (can_pack(model.config) and can_attend(model.config, device)):
        return TorchRuntime.of(model, encoder, settings, str(device), pooling)
    bert = GpuBert(model.to(device), encoder.template, model.dtype, settings.max_tokens, pooling)
    return GpuRuntime(bert, encoder, settings)


def numbers_for(precision: Precision, device: str, processor: Processor) -> str:
    """`int8` or the name of a torch type; GPUs multiply bfloat16 numbers, if they are not too old, and no 8-bit ones
    of ours."""
    if device == "cpu":
        return processor.numbers(precision)
    return "bfloat16" if precision != "float32" and is_recent(torch.device(device)) else "float32"
