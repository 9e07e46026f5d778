"""Counting tokens and making rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marctl_handlers.text.hub import load_tokenizer
from marctl_handlers.text.tokenization import MOST_KEPT_TOKENS, PairEncoder

PAIRS = [("What do people use to cut bread?", choice) for choice in ("a knife", "a spoon", "rain " * 100)]


@pytest.fixture
def encoder(tiny_model: Callable[[str], Path]) -> PairEncoder:
    return PairEncoder(load_tokenizer(tiny_model("bert")), 64)


@pytest.fixture
def tokenized(encoder: PairEncoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that the tokenizer itself was given since."""
    given: list[str] = []
    backend = encoder._backend

    class Watched:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            given.extend(texts)
            return backend.encode_batch_fast(texts, **options)

    monkeypatch.setattr(encoder, "_backend", Watched())
    return given


def test_a_count_is_that_of_the_rows_which_are_cut_at_the_limit(encoder: PairEncoder) -> None:
    rows = encoder.encode(PAIRS)
    assert encoder.count(PAIRS) == sum(len(row.ids) for row in rows)
    assert len(rows[2].ids) == 64


def test_what_was_counted_is_not_tokenized_again_for_its_rows(encoder: PairEncoder, tokenized: list[str]) -> None:
    expected = encoder.encode(PAIRS)
    tokenized.clear()
    encoder.count(PAIRS[:2])
    assert encoder.encode(PAIRS) == expected
    assert len(tokenized) == len(set(tokenized)) == 4


def test_counted_texts_are_kept_for_one_batch_only(encoder: PairEncoder, tokenized: list[str]) -> None:
    encoder.count(PAIRS)
    encoder.encode(PAIRS[:1])
    tokenized.clear()
    encoder.encode(PAIRS[1:])
    assert len(tokenized) == 3


def test_counted_texts_that_are_never_encoded_do_not_fill_the_memory(encoder: PairEncoder) -> None:
    largest = "rain " * (MOST_KEPT_TOKENS // 10)
    tokens = len(encoder.tokenize([largest])[largest])
    for i in range(100):
        encoder.count([(f"{i} {largest}", "a")])
    assert sum(map(len, encoder._counted.values())) < MOST_KEPT_TOKENS + 2 * tokens
