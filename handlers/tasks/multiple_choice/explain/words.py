"""From tokens back to words in the client's own strings.

A word is a run of letters and digits with its marks and inner apostrophes; any other visible character is a word of its
own, and so is each letter of a script that writes without spaces. Words that one token covers together are one piece.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from marctl_handlers.core.errors import NotSupported

APOSTROPHES = "'\u2019"
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Aligned:
    """One text's tokens and pieces. `piece_of` tells each token's piece; `spans` each piece's place, in characters."""

    text: str
    ids: list[int]
    piece_of: list[int]
    spans: list[Span]


class Aligner:
    """Aligns texts by a tokenizer's own offsets, or by its treatment of single words where it is a slow one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None

    def align(self, texts: Iterable[str]) -> dict[str, Aligned]:
        """Each distinct text; raises NotSupported for one that a slow tokenizer does not take word by word."""
        distinct = list(dict.fromkeys(texts))
        if self._backend is None:
            return {text: self._by_words(text) for text in distinct}
        encodings = self._backend.encode_batch(distinct, add_special_tokens=False)
        return {
            text: pieces(text, encoding.ids, encoding.offsets)
            for text, encoding in zip(distinct, encodings, strict=True)
        }

    def _by_words(self, text: str) -> Aligned:
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        parts = [self._ids(text[start:end]) for start, end in spans]
        ids = [token for part in parts for token in part]
        if ids != self._ids(text):
            raise NotSupported(
                "this version's tokenizer does not tell which characters its tokens stand for, and takes this text "
                "otherwise than word by word; save the model with a fast tokenizer"
            )
        offsets = [span for span, part in zip(spans, parts, strict=True) for _ in part]
        return pieces(text, ids, offsets, spans)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])


def pieces(text: str, ids: list[int], offsets: Sequence[Span], spans: Sequence[Span] | None = None) -> Aligned:
    """Give each token to the word under it; a token over several words makes them one piece.

    A token that stands for no visible character (a lone space's, say) goes to the word that follows, or to the last.
    """
    spans = list(words(text)) if spans is None else list(spans)
    if not spans:
        return Aligned(text, ids, [0] * len(ids), [(0, len(text))] if ids else [])
    first = [0] * len(ids)
    last = [0] * len(ids)
    ends = [end for _, end in spans]
    at = 0
    for i, (start, end) in enumerate(offsets):
        while at > 0 and spans[at - 1][1] > start:
            at -= 1
        while at < len(spans) - 1 and ends[at] <= start:
            at += 1
        first[i] = last[i] = at
        while last[i] < len(spans) - 1 and spans[last[i] + 1][0] < end:
            last[i] += 1
    joined = list(range(len(spans)))
    for low, high in zip(first, last, strict=True):
        for word in range(low + 1, high + 1):
            joined[word] = joined[low]
    found: list[Span] = []
    place: dict[int, int] = {}
    for word, head in enumerate(joined):
        if head not in place:
            place[head] = len(found)
            found.append(spans[word])
        else:
            found[place[head]] = (found[place[head]][0], spans[word][1])
    return Aligned(text, ids, [place[joined[word]] for word in first], found)


def words(text: str) -> Iterator[Span]:
    """Where each word begins and ends."""
    start = -1
    for i, character in enumerate(text):
        kind = kind_of(character)
        if kind == "symbol" and start >= 0 and character in APOSTROPHES and joins(text, i):
            continue
        if kind == "letter":
            start = i if start < 0 else start
            continue
        if start >= 0:
            yield start, i
            start = -1
        if kind == "symbol":
            yield i, i + 1
    if start >= 0:
        yield start, len(text)


def joins(text: str, i: int) -> bool:
    return i + 1 < len(text) and kind_of(text[i + 1]) == "letter"


def kind_of(character: str) -> str:
    """`letter` for what makes up words, `symbol` for what stands alone, `space` for what is not seen."""
    if UNSPACED.match(character):
        return "symbol"
    if character.isalnum():
        return "letter"
    category = unicodedata.category(character)
    if category[0] == "M":
        return "letter"
    return "symbol" if category[0] in "PSN" or category == "Co" else "space"
