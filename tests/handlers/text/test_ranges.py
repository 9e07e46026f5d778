from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.packed_runtime import PackedRuntime, watched
from marctl_handlers.text.processor import KINDS, Processor
from marctl_handlers.text.ranges import RANGES_FILE, Grid, InputRange, read_ranges, write_ranges
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import PairEncoder

TEXTS = ["Where do people cut bread?", "a knife", "orange juice on his cereal", "Why not 3 or 42?"]
SETTINGS = TextSettings(task="multiple_choice", precision="int8", max_tokens=64)
SEVEN_BITS = next(kind for kind in KINDS if kind.name == "AVX2")
FOREVER = float("inf")


@pytest.mark.skipif(not Processor.here().int8_middle, reason="this processor has no exact 8-bit products")
def test_a_product_without_a_range_is_computed_in_floating_point(tiny_model: Callable[[str], Path]) -> None:
    """The nearer to float32, the fewer products are in 8 bits; with none of them the scores are float32's."""
    model = AutoModelForMultipleChoice.from_pretrained(tiny_model("bert")).eval().requires_grad_(False)
    encoder = PairEncoder(AutoTokenizer.from_pretrained(tiny_model("bert")), 64)
    rows = encoder.encode([(first, second) for first in TEXTS for second in TEXTS])
    exact = PackedRuntime.of(model, encoder, SETTINGS, SEVEN_BITS, torch.float32).run(rows, FOREVER)
    ranges = watched(model, encoder, rows).learn_ranges()
    some = {name: found for name, found in ranges.items() if name.endswith(("qkv", "down"))}
    others = {name: found for name, found in ranges.items() if name.endswith(("out", "up"))}
    for given in (ranges, some, others, {}):
        runtime = PackedRuntime.quantized(model, encoder, SETTINGS, SEVEN_BITS, given)
        n_float = len(ranges) - len(given)
        assert ("int8 cpu" in runtime.runtime) == (n_float == 0)
        assert (f"int8 but {n_float} products in float32 cpu" in runtime.runtime) == (n_float > 0)
        assert statistics.correlation(runtime.run(rows, FOREVER), exact) > 0.95
    assert runtime.run(rows, FOREVER) == pytest.approx(exact, abs=1e-4)


def test_ranges_of_another_model_stop_the_load(tiny_model: Callable[[str], Path]) -> None:
    model = AutoModelForMultipleChoice.from_pretrained(tiny_model("bert")).eval().requires_grad_(False)
    encoder = PairEncoder(AutoTokenizer.from_pretrained(tiny_model("bert")), 64)
    for name, width in (("7.qkv", 32), ("0.qkv", 31)):
        given = {name: InputRange(torch.ones(width), Grid(0.1, 3))}
        with pytest.raises(LoadError, match=f"{name} does not fit; run `marctl quantize` again"):
            PackedRuntime.quantized(model, encoder, SETTINGS, SEVEN_BITS, given)


def test_the_file_holds_what_was_learned_and_the_same_ranges_give_the_same_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 8, generator=generator)
    weight = torch.randn(4, 8, generator=generator)
    learned = {name: InputRange.of(weight, inputs * size) for name, size in (("0.qkv", 1.0), ("0.down", 3.0))}
    first, second = tmp_path / RANGES_FILE, tmp_path / "again.safetensors"
    write_ranges(first, learned)
    write_ranges(second, dict(reversed(learned.items())))
    assert first.read_bytes() == second.read_bytes()
    read = read_ranges(first)
    assert read is not None
    assert read.keys() == learned.keys()
    for name, found in read.items():
        assert torch.equal(found.levels, learned[name].levels)
        assert found.grid.zero == learned[name].grid.zero
        assert found.grid.scale == pytest.approx(learned[name].grid.scale)


def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / RANGES_FILE
    assert read_ranges(path) is None
    path.write_bytes(b"no tensors")
    with pytest.raises(LoadError, match=r"ranges\.safetensors is damaged .* `marctl quantize`"):
        read_ranges(path)


def test_error_is_what_the_grid_does_to_the_output() -> None:
    """Against the product of inputs that were rounded one by one."""
    generator = torch.Generator().manual_seed(1)
    inputs, weight = torch.randn(64, 6, generator=generator), torch.randn(5, 6, generator=generator)
    found = InputRange.of(weight, inputs, level=False)
    steps = [[min(max(round(v / found.grid.scale + found.grid.zero), 0), 255) for v in row] for row in inputs.tolist()]
    rounded = (torch.tensor(steps, dtype=torch.float32) - found.grid.zero) * found.grid.scale
    exact = inputs @ weight.T
    expected = float((rounded @ weight.T - exact).square().mean().sqrt() / exact.std())
    assert found.error == pytest.approx(expected, rel=1e-2)
    assert 0 < found.error < 0.02
