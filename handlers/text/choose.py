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
from marctl_handlers.text.runtime import Processor, Runtime
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
    `samples` show the ranges of 8-bit integers. A processor without fast ones computes an int8 version in bfloat16 or,
    without that too, in float32.
    """
    torch.set_num_threads(settings.threads)
    processor = processor or Processor.here()
    int8 = settings.precision == "int8" and device == "cpu" and processor.fast_int8
    dtype = torch.float32 if int8 else dtype_of(settings.precision, device, processor)
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
    if not int8:
        return PackedRuntime.of(model, encoder, settings, dtype, pooling)
    return PackedRuntime.quantized(model, encoder, settings, samples, pooling)


def dtype_of(precision: Precision, device: str, processor: Processor) -> torch.dtype:
    """The weights' type; `auto` takes bfloat16 where the processor multiplies in it, for elsewhere it is slower."""
    if precision in ("auto", "int8"):
        native = device != "cpu" or processor.fast_bfloat16
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
