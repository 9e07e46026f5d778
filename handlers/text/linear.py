"""Matrix products of a forward pass, in floating point or in 8-bit integers.

8-bit products take a half to a ninth of the time of float ones (processor.py). A weight keeps one scale per output
channel. An input keeps one scale and zero point in all, found once from sample inputs (ranges.py), so that an answer
depends on no other row of its batch; before that its channels are levelled: what makes one input channel large is moved
into the weights (Xiao et al. 2022, arXiv:2211.10438), which is exact.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from marctl_handlers.text.ranges import LEVELS, Grid, InputRange

LAID_OUT_FOR = 64
"""Tokens that a product is expected to have; it may have any number."""


class Linear(Protocol):
    """`x W^T + b`, plus `residual` if there is one. x: (tokens, in); result: (tokens, out)."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


class FloatLinear:
    """In the weights' own type."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight.contiguous()
        self.bias = bias

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        product = functional.linear(x, self.weight, self.bias)
        return product if residual is None else product.add_(residual)


class LaidOutLinear:
    """The same by oneDNN on an x86 processor, with the weights in the order in which it reads them.

    Milliseconds of one product, from 384 channels to 1536, on one core of an AMD EPYC of 2025, as FloatLinear and so:

                            8 tokens        96 tokens
        bfloat16            0.059, 0.037    0.27, 0.24
        float32, AVX-512    0.136, 0.058    1.06, 0.46
        float32, AVX2       0.143, 0.095    1.05, 0.88
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), LAID_OUT_FOR)
        self.bias = bias

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product if residual is None else product.add_(residual)


def float_linear(weight: Tensor, bias: Tensor) -> Linear:
    """The faster of the two on this processor."""
    # Laid out, a product of few outputs takes longer: most of it is the call.
    wide = len(weight) >= LAID_OUT_FOR
    return LaidOutLinear(weight, bias) if wide and can_lay_out(weight.dtype) else FloatLinear(weight, bias)


@cache
def can_lay_out(dtype: torch.dtype) -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(supported()))


class FloatFeedForward:
    """`down(gelu(up(x))) + x`."""

    def __init__(self, up: Linear, down: Linear) -> None:
        self.up = up
        self.down = down

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)), x)


class Watched(FloatLinear):
    """A float linear that keeps its inputs, from which their range is learned."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.inputs: list[Tensor] = []

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self.inputs.append(x)
        return super().__call__(x, residual)


class Int8Linear:
    """In 8-bit integers, float32 in and out."""

    def __init__(self, linear: FloatLinear, given: InputRange, middle: int) -> None:
        """`given`: how its input becomes 8-bit integers. `middle`: the largest step of a weight."""
        self.grid = given.grid
        self._to_steps = 1 / (given.levels * self.grid.scale)
        self._half_up = torch.tensor(self.grid.zero + 0.5)
        weight = linear.weight * given.levels
        self._scales = weight.abs().amax(1).clamp_(min=1e-8) / middle
        steps = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self._zeros = torch.zeros(len(steps), dtype=torch.int64)
        self._bias = linear.bias

    def steps(self, x: Tensor) -> Tensor:
        """float32 -> uint8 on the input's grid."""
        return torch.addcmul(self._half_up, x, self._to_steps).clamp_(0, LEVELS).to(torch.uint8)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.product(self.steps(x), residual)

    def product(self, steps: Tensor, residual: Tensor | None = None) -> Tensor:
        """Of an input that is on its grid already."""
        given = (steps, self.grid.scale, self.grid.zero, self._weight, self._scales, self._zeros)
        made = (1.0, 0, torch.float32)
        result: Tensor
        if residual is None:
            result = torch.ops.onednn.qlinear_pointwise(*given, self._bias, *made, "none", [], "")
        else:
            result = torch.ops.onednn.qlinear_pointwise.binary(
                *given, residual, self._bias, *made, 1.0, 0, "add", 1.0, "none", [], ""
            )
        return result

    def gelu_steps(self, x: Tensor, grid: Grid) -> Tensor:
        """uint8: GELU of the product, on the grid of the linear that comes next."""
        return self._gelu(x, grid, torch.uint8)

    def gelu(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """GELU of the product in a float type."""
        return self._gelu(x, Grid(1.0, 0), dtype)

    def _gelu(self, x: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        given = (self.steps(x), self.grid.scale, self.grid.zero, self._weight, self._scales, self._zeros)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *given, self._bias, grid.scale, grid.zero, dtype, "gelu", [], "none"
        )
        return result


class CastLinear:
    """In a float type, between products in 8-bit integers: float32 out."""

    def __init__(self, linear: FloatLinear, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._linear = float_linear(linear.weight.to(dtype), linear.bias.to(dtype))

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        product = self._linear(x.to(self.dtype))
        return product.float() if residual is None else residual + product


class Int8FeedForward:
    """`down(gelu(up(x))) + x`; what lies between the two products never leaves 8 bits."""

    def __init__(self, up: Int8Linear, down: Int8Linear) -> None:
        self.up = up
        self.down = down

    def __call__(self, x: Tensor) -> Tensor:
        return self.down.product(self.up.gelu_steps(x, self.down.grid), x)


class MixedFeedForward:
    """`down(gelu(up(x))) + x`, `up` in 8-bit integers, `down` in a float type."""

    def __init__(self, up: Int8Linear, down: CastLinear) -> None:
        self.up = up
        self.down = down

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.up.gelu(x, self.down.dtype), x)
