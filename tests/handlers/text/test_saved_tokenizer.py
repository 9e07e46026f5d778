"""Tokenizers read from their file, against those that transformers makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.hub import load_tokenizer
from marctl_handlers.text.saved_tokenizer import FACTS_FILE, SavedTokenizer, open_tokenizer, record
from marctl_handlers.text.tokenization import PairEncoder, TextEncoder

TEXTS = ["What do people use?", "a knife, naïvely", "", "Why not 3 or 42? " * 30, "\u00e9\u4e2d\U0001f600"]
PAIRS = [(first, second) for first in TEXTS for second in TEXTS]


@pytest.fixture
def copy(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(tiny_model(kind), tmp_path / kind))


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "distilbert", "modernbert"])
def test_rows_are_those_of_the_tokenizer_that_transformers_loads(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    record(folder, load_tokenizer(folder))
    saved = open_tokenizer(folder)
    assert isinstance(saved, SavedTokenizer)
    whole = AutoTokenizer.from_pretrained(folder)
    own, others = PairEncoder(saved, 64), PairEncoder(whole, 64)
    assert (own.template, own.pad_id, own.key) == (others.template, others.pad_id, others.key)
    assert own.encode(PAIRS) == others.encode(PAIRS)
    assert TextEncoder(saved, 64).encode(TEXTS) == TextEncoder(whole, 64).encode(TEXTS)


def test_a_tokenizer_that_cut_and_filled_up_texts_makes_the_same_rows(copy: Callable[[str], Path]) -> None:
    """Settings of an earlier use, which are saved with it."""
    folder = copy("bert")
    used = AutoTokenizer.from_pretrained(folder)
    used(TEXTS, truncation=True, max_length=8, padding=True)
    used.save_pretrained(folder)
    record(folder, used)
    saved = open_tokenizer(folder)
    assert isinstance(saved, SavedTokenizer)
    assert PairEncoder(saved, 64).encode(PAIRS) == PairEncoder(load_tokenizer(folder), 64).encode(PAIRS)


def test_a_slow_tokenizer_is_left_to_transformers(copy: Callable[[str], Path]) -> None:
    folder = copy("bertweet")
    record(folder, load_tokenizer(folder))
    assert not (folder / FACTS_FILE).exists()
    assert not isinstance(open_tokenizer(folder), SavedTokenizer)


def test_one_that_differs_from_its_file_is_left_to_transformers(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    whole = load_tokenizer(folder)
    whole.add_tokens(["knifelike"])
    record(folder, whole)
    assert not (folder / FACTS_FILE).exists()


@pytest.mark.parametrize("damage", ["{}", "[", None])
def test_facts_that_are_missing_or_damaged_leave_it_to_transformers(
    damage: str | None, copy: Callable[[str], Path]
) -> None:
    folder = copy("bert")
    record(folder, load_tokenizer(folder))
    (folder / FACTS_FILE).write_text(damage) if damage else (folder / FACTS_FILE).unlink()
    assert not isinstance(open_tokenizer(folder), SavedTokenizer)


def test_facts_count_for_the_file_alone_that_they_were_recorded_for(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    record(folder, load_tokenizer(folder))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert not isinstance(open_tokenizer(folder), SavedTokenizer)


def test_a_tokenizer_of_another_model_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    record(folder, load_tokenizer(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 30_000}))
    with pytest.raises(LoadError, match="another model's"):
        open_tokenizer(folder)
