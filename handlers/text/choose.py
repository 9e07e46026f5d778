"""Which runtime computes a model: packed rows where the model and the device allow it, else the model's own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForMultipleChoice

from handlers.core.errors import LoadError
from handlers.core.settings import Precision, Settings
from handlers.tasks.multiple_choice.task import Scorer
from handlers.text.packed_bert import ENCODERS, can_pack
from handlers.text.packed_runtime import PackedScorer
from handlers.text.tokenization import PairEncoder, Row
from handlers.text.torch_runtime import TorchScorer


def load_scorer(
    folder: Path, encoder: PairEncoder, settings: Settings, device: str, samples: Sequence[Row] = ()
) -> Scorer:
    """The fastest runtime for a `save_pretrained` folder; raises LoadError naming the cure.

    `samples` show the ranges of 8-bit integers. A device without fast ones computes an int8 version in bfloat16 or,
    without that too, in float32.
    """
    torch.set_num_threads(settings.threads)
    int8 = settings.precision == "int8" and device == "cpu" and torch.cpu._is_vnni_supported()
    dtype = torch.float32 if int8 else dtype_of(settings.precision, device)
    model = load_model(folder, dtype)
    packed = can_pack(model.config)
    if settings.precision == "int8" and not packed:
        raise LoadError(
            f"precision is int8, which is for {', '.join(sorted(ENCODERS))} models with GELU; "
            f"this is a {model.config.model_type} model: set `precision: auto` in model.yaml"
        )
    if device != "cpu" or not packed:
        return TorchScorer.of(model, encoder, settings, device)
    if not int8:
        return PackedScorer.of(model, encoder, settings, dtype)
    if not samples:
        raise LoadError("precision is int8, but there is no samples.json to learn ranges from; set `precision: auto`")
    return PackedScorer.quantized(model, encoder, settings, samples)


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A multiple-choice model without gradients; raises LoadError if a weight of it is missing."""
    try:
        model, report = AutoModelForMultipleChoice.from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as err:
        raise LoadError(f"{folder.name}/ does not hold a multiple-choice model: {err}") from err
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise LoadError(f"the weights lack {missing}; fine-tune and save the model with its multiple-choice head")
    return model.eval().requires_grad_(False)


def dtype_of(precision: Precision, device: str) -> torch.dtype:
    """The weights' type; `auto` takes bfloat16 where the processor multiplies in it, for elsewhere it is slower."""
    if precision in ("auto", "int8"):
        native = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
