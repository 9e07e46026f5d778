"""The GPU's path on a processor: the same steps, but for the kernel of attention, pinned memory and graphs."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMultipleChoice, AutoTokenizer

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.gpu.batch import SHAPES, Shape, lay_out, passes, shape_for
from marctl_handlers.text.gpu.model import GpuBert
from marctl_handlers.text.gpu.runtime import GpuRuntime
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.settings import POOLING_MODES, PoolingMode, TextSettings
from marctl_handlers.text.tokenization import PairEncoder, Row, TextEncoder

FOREVER = float("inf")
TEXTS = ["Where do people cut bread?", "a knife", "orange juice on his cereal", "Why not 3 or 42?"]
PAIRS = [(first, second) for first in TEXTS for second in TEXTS]


def settings(**changes: Any) -> TextSettings:
    return TextSettings(**{"task": "multiple_choice", "max_tokens": 64} | changes)


def runtime(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[GpuRuntime, list[Row]]:
    encoder = PairEncoder(AutoTokenizer.from_pretrained(folder), 64)
    model = AutoModelForMultipleChoice.from_pretrained(folder, dtype=dtype).eval()
    given = settings(**changes)
    return GpuRuntime(GpuBert(model, encoder.template, dtype, given.max_tokens), encoder, given), encoder.encode(PAIRS)


@torch.inference_mode()
def plain_scores(folder: Path) -> list[float]:
    """One pair at a time by transformers' own code."""
    model = AutoModelForMultipleChoice.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        model(**{n: v.unsqueeze(0) for n, v in tokenizer([a], [b], return_tensors="pt").items()}).logits.item()
        for a, b in PAIRS
    ]


@pytest.mark.parametrize("kind", ["bert", "roberta", "bertweet"])
@pytest.mark.parametrize("rows_per_pass", [None, 3])
def test_scores_are_those_of_plain_transformers(
    kind: str, rows_per_pass: int | None, tiny_model: Callable[[str], Path]
) -> None:
    computed, rows = runtime(tiny_model(kind), rows_per_pass=rows_per_pass)
    assert computed.run(rows, FOREVER) == pytest.approx(plain_scores(tiny_model(kind)), abs=1e-4)
    assert computed.run([], FOREVER) == []


def test_what_fills_a_pass_up_changes_no_row(tiny_model: Callable[[str], Path]) -> None:
    computed, rows = runtime(tiny_model("bert"))
    together = computed.run(rows, FOREVER)
    assert together == pytest.approx([computed.run([row], FOREVER)[0] for row in rows], abs=1e-5)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("normalize", [True, False])
@torch.inference_mode()
def test_vectors_are_those_of_plain_transformers(
    mode: PoolingMode, normalize: bool, tiny_model: Callable[[str], Path]
) -> None:
    folder, pooling = tiny_model("bert"), Pooling(mode, normalize)
    encoder = TextEncoder(AutoTokenizer.from_pretrained(folder), 64)
    model = AutoModel.from_pretrained(folder).eval()
    rows = encoder.encode(TEXTS)
    bert = GpuBert(model, encoder.template, torch.float32, 64, pooling)
    found = GpuRuntime(bert, encoder, settings()).run(rows, FOREVER)
    for row, vector in zip(rows, found, strict=True):
        [wanted] = pooling(model(input_ids=torch.tensor([row.ids])).last_hidden_state).tolist()
        assert vector == pytest.approx(wanted, abs=1e-5)


def test_bfloat16_is_near(tiny_model: Callable[[str], Path]) -> None:
    computed, rows = runtime(tiny_model("bert"), torch.bfloat16)
    wanted = plain_scores(tiny_model("bert"))
    assert torch.corrcoef(torch.tensor([computed.run(rows, FOREVER), wanted]))[0, 1] > 0.95


def limited(computed: GpuRuntime, monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """A device whose memory ends at so many tokens of a pass; the tokens of all passes that fitted."""
    compute, fitted = computed.bert.compute, []

    def with_limit(packed: torch.Tensor, shape: Shape) -> torch.Tensor:
        if shape.tokens > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        fitted.append(shape.tokens)
        return compute(packed, shape)

    monkeypatch.setattr(computed._graphs, "_compute", with_limit)
    return fitted


def test_out_of_memory_halves_the_pass_until_it_fits_and_loses_no_row(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computed, rows = runtime(tiny_model("bert"))
    wanted = computed.run(rows * 8, FOREVER)
    fitted = limited(computed, monkeypatch, 320)
    with caplog.at_level(logging.WARNING):
        assert computed.run(rows * 8, FOREVER) == pytest.approx(wanted, abs=1e-5)
    assert max(fitted) <= 320 < sum(fitted)
    assert 64 <= computed.tokens_per_pass <= 320
    assert f"passes have at most {computed.tokens_per_pass} tokens from now on" in caplog.text
    failures = len(caplog.records)
    computed.run(rows * 8, FOREVER)
    assert len(caplog.records) == failures, "the next batch fits at once"


def test_a_row_that_fits_nowhere_is_told(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    computed, rows = runtime(tiny_model("bert"))
    limited(computed, monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        computed.run(rows, FOREVER)


def test_another_fault_is_not_tried_again(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    computed, rows = runtime(tiny_model("bert"))
    calls = []

    def fail(*_: Any) -> Any:
        calls.append(1)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(computed._graphs, "_compute", fail)
    with pytest.raises(torch.AcceleratorError):
        computed.run(rows, FOREVER)
    assert len(calls) == 1


def test_passes_after_the_deadline_are_not_computed(tiny_model: Callable[[str], Path]) -> None:
    computed, rows = runtime(tiny_model("bert"), rows_per_pass=4)
    assert [score is None for score in computed.run(rows, deadline=0.0)] == [False] * 4 + [True] * 12


def test_row_limit_beyond_the_positions_stops_the_load(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(LoadError, match="positions for 128 tokens"):
        runtime(tiny_model("bert"), max_tokens=129)


def test_warming_up_runs_every_length(tiny_model: Callable[[str], Path]) -> None:
    computed, rows = runtime(tiny_model("bert"), rows_per_pass=4)
    computed.warm_up()
    assert all(score is not None for score in computed.run(rows, FOREVER))


def test_every_pass_fits_one_of_few_shapes_that_are_hardly_larger() -> None:
    assert len(SHAPES) == 33
    drawn = random.Random(5)
    rows = [Row([1] * drawn.randint(3, 90), 2, False) for _ in range(20000)]
    for part in passes(rows, SHAPES[-1].tokens, SHAPES[-1].rows):
        tokens = sum(len(row.ids) for row in part)
        shape = shape_for(tokens, len(part))
        assert shape in SHAPES
        assert tokens <= shape.tokens <= max(64, 1.25 * tokens)
        assert len(part) <= shape.rows
    assert shape_for(20000, 3) == Shape(20000, 3), "a row that is longer than any shape"
    assert shape_for(100, 100).rows >= 100


def test_a_pass_holds_each_token_its_place_and_the_rows_bounds() -> None:
    rows = [Row([2, 7, 3, 8, 3], 3, False), Row([2, 9, 3], 3, False)]
    packed, shape = lay_out(rows, 100, None, pinned=False)
    ids, places, bounds = packed.split(shape.sizes)
    assert shape == Shape(64, 8)
    assert ids.tolist() == [2, 7, 3, 8, 3, 2, 9, 3] + [0] * 56
    assert places.tolist() == [0, 1, 2, 103, 104, 0, 1, 2] + [0] * 56
    assert bounds.tolist() == [0, 5] + [8] * 7


def test_a_full_shape_has_no_token_left_for_rows_of_none() -> None:
    """Whose first token must be one of the pass all the same: an index behind it would end the GPU's context."""
    rows = [Row([5] * 64, 64, False)]
    packed, shape = lay_out(rows, 100, None, pinned=False)
    assert shape.tokens == 64
    assert packed.split(shape.sizes)[2].tolist() == [0] + [64] * 8
