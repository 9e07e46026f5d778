from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from handlers.core.errors import LoadError
from handlers.core.settings import Settings
from handlers.text.choose import load_scorer
from handlers.text.packed_runtime import PackedScorer
from handlers.text.tokenization import PairEncoder, Row
from handlers.text.torch_runtime import TorchScorer

TEXTS = ["Where do people cut bread?", "a knife", "orange juice on his cereal", "Why not 3 or 42?"]
FOREVER = float("inf")


def settings(**changes: Any) -> Settings:
    return Settings(**{"task": "multiple_choice", "precision": "float32", "max_tokens": 64} | changes)


def load(folder: Path, samples: int = 0, **changes: Any) -> tuple[Any, list[Row]]:
    encoder = PairEncoder(AutoTokenizer.from_pretrained(folder), 64)
    rows = encoder.encode([(first, second) for first in TEXTS for second in TEXTS])
    return load_scorer(folder, encoder, settings(**changes), "cpu", rows[:samples]), rows


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("bert", PackedScorer), ("roberta", PackedScorer), ("bertweet", PackedScorer), ("distilbert", TorchScorer)],
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
    padded = TorchScorer.of(model, encoder, settings(), "cpu")
    assert packed.scores(rows, FOREVER) == pytest.approx(padded.scores(rows, FOREVER), abs=1e-4)


def test_padding_token_in_a_text_takes_no_position_as_in_roberta(tiny_model: Callable[[str], Path]) -> None:
    packed, _ = load(tiny_model("roberta"))
    model = AutoModelForMultipleChoice.from_pretrained(tiny_model("roberta")).eval()
    ids = [0, 9, 1, 11, 2, 2, 12, 2]
    with torch.inference_mode():
        tensor = torch.tensor([[ids]])
        expected = model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits.item()
    assert packed.scores([Row(ids, 6, False)], FOREVER) == pytest.approx([expected], abs=1e-4)


def test_passes_after_the_deadline_are_not_computed(tiny_model: Callable[[str], Path]) -> None:
    packed, rows = load(tiny_model("bert"), rows_per_pass=4)
    scores = packed.scores(rows, deadline=0.0)
    assert sum(score is not None for score in scores) == 4


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs 8-bit integer instructions")
def test_int8_scores_depend_on_no_batch_mate(tiny_model: Callable[[str], Path]) -> None:
    packed, rows = load(tiny_model("bert"), samples=8, precision="int8")
    together = packed.scores(rows, FOREVER)
    alone = [packed.scores([row], FOREVER)[0] for row in rows]
    assert together == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "samples", "reason"), [("distilbert", 8, "set `precision: auto`"), ("bert", 0, "no samples.json")]
)
def test_int8_says_what_it_needs(kind: str, samples: int, reason: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(LoadError, match=reason):
        load(tiny_model(kind), samples, precision="int8")


def test_row_limit_beyond_the_positions_stops_the_load(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(LoadError, match="positions for 128 tokens"):
        load(tiny_model("bert"), max_tokens=129)
