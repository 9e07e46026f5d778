"""Words are stretches of the client's own strings, whatever the tokenizer made of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from marctl_handlers.core.errors import NotSupported
from marctl_handlers.tasks.multiple_choice.explain.words import Aligner, pieces, words
from tests.tiny_models import KINDS

TEXTS = [
    "What do people use to cut bread?",
    "naïvely, e\u0301tude -- don't \u2018stop\u2019",
    "  spaces\tand\nlines  ",
    "emoji 👩‍🍳 and 水を切る",
    "\u200b\ufeff",
    " ",
    "x" * 300,
]


def test_words_are_runs_of_letters_and_single_symbols() -> None:
    text = "He's e\u0301tude-minded, isn\u2019t he? 水を 3.5% 'so'"
    assert [text[start:end] for start, end in words(text)] == [
        "He's", "e\u0301tude", "-", "minded", ",", "isn\u2019t", "he", "?", "水", "を", "3", ".", "5", "%", "'", "so",
        "'",
    ]  # fmt: skip


def test_token_over_several_words_makes_them_one_piece() -> None:
    aligned = pieces("a b? c", [7, 8, 9], [(0, 1), (1, 4), (4, 6)])
    assert aligned.spans == [(0, 1), (2, 4), (5, 6)]
    assert aligned.piece_of == [0, 1, 2]


def test_token_of_no_character_goes_to_the_word_that_follows_or_to_the_last() -> None:
    aligned = pieces("ab cd ", [1, 2, 3, 4, 5], [(0, 0), (0, 2), (2, 3), (3, 5), (5, 6)])
    assert aligned.piece_of == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("text", TEXTS)
def test_every_token_has_a_word_that_holds_its_characters(
    kind: str, text: str, tiny_model: Callable[[str], Path]
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model(kind))
    try:
        aligned = Aligner(tokenizer).align([text])[text]
    except NotSupported:
        assert not tokenizer.is_fast
        return
    assert aligned.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(aligned.piece_of) == len(aligned.ids)
    assert sorted(aligned.spans) == aligned.spans
    assert aligned.piece_of == sorted(aligned.piece_of)
    if tokenizer.is_fast and aligned.ids:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for (start, end), piece in zip(offsets, aligned.piece_of, strict=True):
            low, high = aligned.spans[piece]
            invisible = all(unicodedata.category(character)[0] in "ZC" for character in text[start:end])
            assert invisible or (low < end and start < high)


def test_slow_tokenizer_that_takes_words_apart_is_refused(tiny_model: Callable[[str], Path]) -> None:
    """BERTweet's own treatment of words, and one that looks at the whole text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model("bertweet"))
    assert Aligner(tokenizer).align(["a knife"])["a knife"].spans == [(0, 1), (2, 7)]

    class Reverses:
        is_fast = False

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in reversed(text)]}

    with pytest.raises(NotSupported, match="fast tokenizer"):
        Aligner(Reverses()).align(["two words"])
