from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.choose import load_runtime
from marctl_handlers.text.packed_runtime import PackedRuntime
from marctl_handlers.text.processor import KINDS, PLAIN, Processor
from marctl_handlers.text.runtime import Runtime
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import PairEncoder, Row
from marctl_handlers.text.torch_runtime import TorchRuntime

TEXTS = ["Where do people cut bread?", "a knife", "orange juice on his cereal", "Why not 3 or 42?"]
FOREVER = float("inf")
HUB_CLASS = "AutoModelForMultipleChoice"


def settings(**changes: Any) -> TextSettings:
    return TextSettings(**{"task": "multiple_choice", "precision": "float32", "max_tokens": 64} | changes)


def load(folder: Path, samples: int = 0, processor: Processor = PLAIN, **changes: Any) -> tuple[Runtime, list[Row]]:
    encoder = PairEncoder(AutoTokenizer.from_pretrained(folder), 64)
    rows = encoder.encode([(first, second) for first in TEXTS for second in TEXTS])
    given = settings(**changes)
    return load_runtime(folder, HUB_CLASS, encoder, given, "cpu", rows[:samples], processor), rows


def only_where_computable(processor: Processor) -> None:
    """Skip where this machine's own processor cannot do what the tested one does."""
    here, capabilities = Processor.here(), torch.cpu.get_capabilities()
    if processor.int8_middle > here.int8_middle or (processor.int8_middle and not capabilities.get("avx2")):
        pytest.skip("sums of 8-bit products would saturate on this processor")
    if processor.bfloat16 and not here.bfloat16:
        pytest.skip("this processor emulates bfloat16")


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("bert", PackedRuntime), ("roberta", PackedRuntime), ("bertweet", PackedRuntime), ("distilbert", TorchRuntime)],
)
def test_packs_the_models_it_knows_and_leaves_others_to_their_own_code(
    kind: str, runtime: type, tiny_model: Callable[[str], Path]
) -> None:
    assert isinstance(load(tiny_model(kind))[0], runtime)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("rows_per_pass", [3, 64])
def test_packed_scores_are_those_of_padded_rows(
    kind: str, rows_per_pass: int, tiny_model: Callable[[str], Path]
) -> None:
    packed, rows = load(tiny_model(kind), rows_per_pass=rows_per_pass)
    model = AutoModelForMultipleChoice.from_pretrained(tiny_model(kind)).eval()
    encoder = PairEncoder(AutoTokenizer.from_pretrained(tiny_model(kind)), 64)
    padded = TorchRuntime.of(model, encoder, settings(), "cpu")
    assert packed.run(rows, FOREVER) == pytest.approx(padded.run(rows, FOREVER), abs=1e-4)


def test_padding_token_in_a_text_takes_no_position_as_in_roberta(tiny_model: Callable[[str], Path]) -> None:
    packed, _ = load(tiny_model("roberta"))
    model = AutoModelForMultipleChoice.from_pretrained(tiny_model("roberta")).eval()
    ids = [0, 9, 1, 11, 2, 2, 12, 2]
    with torch.inference_mode():
        tensor = torch.tensor([[ids]])
        expected = model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits.item()
    assert packed.run([Row(ids, 6, False)], FOREVER) == pytest.approx([expected], abs=1e-4)


def test_passes_after_the_deadline_are_not_computed(tiny_model: Callable[[str], Path]) -> None:
    packed, rows = load(tiny_model("bert"), rows_per_pass=4)
    scores = packed.run(rows, deadline=0.0)
    assert sum(score is not None for score in scores) == 4


@pytest.mark.parametrize("processor", KINDS, ids=str)
@pytest.mark.parametrize("precision", ["float32", "auto", "int8"])
def test_each_processor_computes_in_what_it_is_fast_in(
    precision: str, processor: Processor, tiny_model: Callable[[str], Path]
) -> None:
    only_where_computable(processor)
    packed, rows = load(tiny_model("bert"), 8, processor, precision=precision)
    numbers = processor.numbers(precision)
    assert f" packed {numbers if numbers == 'int8' else f'torch.{numbers}'} cpu {processor}" in packed.runtime
    exact, _ = load(tiny_model("bert"))
    wanted, given = exact.run(rows, FOREVER), packed.run(rows, FOREVER)
    if numbers == "float32":
        assert given == wanted
    # Rounding moves single scores of a random model with wide weights far; all of them together it hardly moves.
    assert statistics.correlation(given, wanted) > 0.95


def test_int8_scores_depend_on_no_batch_mate(tiny_model: Callable[[str], Path]) -> None:
    fast = next(kind for kind in KINDS if kind.name == "AVX2")
    only_where_computable(fast)
    packed, rows = load(tiny_model("bert"), 8, fast, precision="int8")
    together = packed.run(rows, FOREVER)
    alone = [packed.run([row], FOREVER)[0] for row in rows]
    assert together == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize("processor", KINDS, ids=str)
@pytest.mark.parametrize(
    ("kind", "samples", "reason"), [("distilbert", 8, "set `precision: auto`"), ("bert", 0, "no samples.json")]
)
def test_int8_says_what_it_needs(
    kind: str, samples: int, reason: str, processor: Processor, tiny_model: Callable[[str], Path]
) -> None:
    """On every processor alike: a version that is built on one is served on another."""
    with pytest.raises(LoadError, match=reason):
        load(tiny_model(kind), samples, processor, precision="int8")


def test_row_limit_beyond_the_positions_stops_the_load(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(LoadError, match="positions for 128 tokens"):
        load(tiny_model("bert"), max_tokens=129)
