from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor

from marctl_handlers.text import linear
from marctl_handlers.text.linear import FloatLinear, LaidOutLinear, can_lay_out, float_linear
from marctl_handlers.text.processor import Processor

WIDE, NARROW = (192, 96), (1, 96)
NUMBERS = [torch.float32, torch.bfloat16]


def weights(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(dtype), torch.randn(shape[0], generator=generator).to(dtype)


def only_where_possible(dtype: torch.dtype) -> None:
    if not can_lay_out(dtype):
        pytest.skip(f"oneDNN lays out no {dtype} weights on this processor")


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("tokens", [1, 8, 100, 1000])
def test_weights_laid_out_beforehand_give_the_same_products(tokens: int, dtype: torch.dtype) -> None:
    only_where_possible(dtype)
    weight, bias = weights(WIDE, dtype)
    x, residual = torch.randn(tokens, WIDE[1], dtype=dtype), torch.randn(tokens, WIDE[0], dtype=dtype)
    laid_out = LaidOutLinear(weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    tolerance = 1e-4 if dtype == torch.float32 else 0.2  # bfloat16 keeps 8 bits of sums up to 40
    assert (laid_out(x).double() - exact).abs().max() < tolerance
    assert (laid_out(x, residual).double() - exact - residual.double()).abs().max() < 2 * tolerance


@pytest.mark.parametrize("dtype", NUMBERS)
def test_a_token_s_product_depends_on_no_other_token(dtype: torch.dtype) -> None:
    only_where_possible(dtype)
    laid_out = LaidOutLinear(*weights(WIDE, dtype))
    x = torch.randn(1000, WIDE[1], dtype=dtype)
    whole = laid_out(x)
    for few in (8, 16, 96):
        assert torch.equal(laid_out(x[:few]), whole[:few])


def test_products_of_few_outputs_are_left_as_they_are() -> None:
    assert isinstance(float_linear(*weights(NARROW)), FloatLinear)


def test_no_weight_is_laid_out_in_numbers_that_the_processor_emulates() -> None:
    """A version may ask for bfloat16 anywhere; oneDNN lays out no such weights where it has no products of them."""
    weight, bias = weights(WIDE, torch.bfloat16)
    made = float_linear(weight, bias)
    if Processor.here().bfloat16 and platform.machine() == "x86_64":
        assert isinstance(made, LaidOutLinear)
    assert made(torch.randn(8, WIDE[1]).to(torch.bfloat16)).shape == (8, WIDE[0])


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_other_processors_than_x86_are_left_alone(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.platform, "machine", lambda: machine)
    can_lay_out.cache_clear()
    try:
        assert isinstance(float_linear(*weights(WIDE)), FloatLinear)
    finally:
        can_lay_out.cache_clear()
