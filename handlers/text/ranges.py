"""How the inputs of a model's products become 8-bit integers: learned from sample inputs, and kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marctl_handlers.core.errors import LoadError

RANGES_FILE = "ranges.safetensors"
CHANNELS, GRID = ".levels", ".grid"
LEVELS = 255
LEVELLING = 0.7
"""Share of a channel's size that moves into the weights; of 0, 0.5 and 0.7 the nearest to float32 on dev questions."""
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the seen range that are tried: clipping few large values can be worth finer steps for all others."""


@dataclass(frozen=True)
class Grid:
    """Unsigned 8-bit steps: `value = (step number - zero) * scale`."""

    scale: float
    zero: int

    @classmethod
    def of(cls, values: Tensor) -> Grid:
        """The grid, out of some narrower and wider ones, that loses least (mean square) on sample values."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        grids = []
        for clip in CLIPS:
            scale = max((high - low) * clip / LEVELS, 1e-8)
            grids.append(cls(scale, round(-low * clip / scale)))
        return min(grids, key=lambda grid: grid.loss(values))

    def nearest(self, values: Tensor) -> Tensor:
        """What the values become on this grid."""
        steps = (values / self.scale + self.zero).round_().clamp_(0, LEVELS)
        return (steps - self.zero) * self.scale

    def loss(self, values: Tensor) -> float:
        """Mean square error of sample values on this grid."""
        return float((self.nearest(values) - values).square_().mean())


@dataclass(frozen=True)
class InputRange:
    """Of one product's input: what each channel is divided by, (in,), and the grid of all of them after that."""

    levels: Tensor
    grid: Grid
    error: float = 0.0
    """By how much of its standard deviation the grid moves the output, root mean square over the sample inputs."""

    @classmethod
    def of(cls, weight: Tensor, inputs: Tensor, *, level: bool = True) -> InputRange:
        """From sample inputs, (tokens, in). `level` is off where the input is made on its grid elsewhere."""
        levels = torch.ones(weight.shape[1])
        if level:
            largest = weight.abs().amax(0).clamp_(min=1e-5)
            levels = inputs.abs().amax(0).clamp_(min=1e-5) ** LEVELLING / largest ** (1 - LEVELLING)
        levelled = inputs / levels
        grid = Grid.of(levelled)
        moved = (grid.nearest(levelled) - levelled) @ (weight * levels).T
        return cls(levels, grid, float(moved.square().mean().sqrt() / (inputs @ weight.T).std()))


def write_ranges(path: Path, ranges: Mapping[str, InputRange]) -> None:
    """By product, in float32; the same ranges give the same bytes."""
    tensors = {}
    for name, found in sorted(ranges.items()):
        tensors[name + CHANNELS] = found.levels
        tensors[name + GRID] = torch.tensor([found.grid.scale, float(found.grid.zero)])
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial)
    partial.chmod(0o644)
    partial.replace(path)


def read_ranges(path: Path) -> dict[str, InputRange] | None:
    """By product; None where there is no file. Raises LoadError for one that is damaged."""
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        return {
            name.removesuffix(GRID): InputRange(
                tensors[name.removesuffix(GRID) + CHANNELS], Grid(float(values[0]), int(values[1]))
            )
            for name, values in tensors.items()
            if name.endswith(GRID)
        }
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as err:
        raise LoadError(f"{path.name} is damaged ({err}); make it anew with `marctl quantize`") from err
