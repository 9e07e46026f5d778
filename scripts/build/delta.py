"""Fine-tuned weights as the difference from published ones, 8 bits a value.

A matrix's difference is kept as int8 with one float32 scale a row, which costs a quarter of float32 and rounds by at
most half a step: (largest difference of the row) / 254. Vectors are few and stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marctl.core.errors import UserError

VALUES, SCALES = ".int8", ".scale"


def pack_delta(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a delta file: what turns `base` into `tuned`, for the names in `tuned`."""
    packed: dict[str, Tensor] = {}
    for name, weight in tuned.items():
        difference = weight.float() - base[name].float()
        if difference.dim() < 2:
            packed[name] = difference
            continue
        scale = difference.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        packed[name + VALUES] = (difference / scale).round().to(torch.int8)
        packed[name + SCALES] = scale
    return packed


def apply_delta(weights: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> None:
    """Add a delta to `weights` in place; raises UserError if the two do not fit."""
    for key, value in delta.items():
        if key.endswith(SCALES):
            continue
        name = key.removesuffix(VALUES)
        if name not in weights or weights[name].shape != value.shape:
            found = tuple(weights[name].shape) if name in weights else "none"
            raise UserError(
                f"the delta changes {name} of shape {tuple(value.shape)}, the base has {found}; train the delta again"
            )
        weights[name].add_(value * delta[name + SCALES] if key.endswith(VALUES) else value)


def write_delta(path: Path, delta: Mapping[str, Tensor]) -> None:
    """Write aside and rename; the file is whole or absent."""
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in delta.items()}, partial)
    partial.replace(path)


def read_delta(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as err:
        raise UserError(f"{path}: cannot read the delta: {err}; make it with `marctl train`") from err
