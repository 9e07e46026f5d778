"""From texts, or pairs of them, to token rows; each distinct text is tokenized once per batch.

Tokenizers encode the two texts of a pair separately and then join them with fixed special tokens, and put such tokens
round a single text. What they put where is learned from the tokenizer itself at load, so one code path serves BERT,
RoBERTa and DeBERTa, with or without `token_type_ids`, and fast or slow tokenizers.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from marctl_handlers.core.errors import LoadError

PROBE = ("is water wet", "yes")
MOST_KEPT_TOKENS = 100_000
"""Of texts that were counted and wait to be encoded: a few megabytes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenized text or pair, ready for the model.

    `second_at` is where the second text (and its segment) begins; the end of the row where there is none.
    """

    ids: list[int]
    second_at: int
    truncated: bool


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens round a pair: prefix + first + middle + second + suffix."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    has_type_ids: bool
    middle_in_first: int
    """How many of the middle tokens belong to the first segment; the rest are the second's."""
    second_type: int

    @property
    def special_tokens(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True)
class TextTemplate:
    """The special tokens round a single text: prefix + text + suffix, all of the first segment."""

    prefix: list[int]
    suffix: list[int]
    has_type_ids: bool
    second_type: int = 0

    @property
    def special_tokens(self) -> int:
        return len(self.prefix) + len(self.suffix)


class RowEncoder(ABC):
    """Makes rows of at most `max_tokens` tokens."""

    template: PairTemplate | TextTemplate

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        """Raises LoadError if the tokenizer joins texts in a way that is not supported, or no text would fit."""
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._counted: dict[str, list[int]] = {}
        self._counted_tokens = 0
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self.template = self._learn_template()
        self.room = max_tokens - self.special_tokens
        if self.room < 2:
            raise LoadError(
                f"max_tokens is {max_tokens}, but the special tokens alone take {self.special_tokens}; "
                "raise max_tokens in model.yaml"
            )
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @abstractmethod
    def _learn_template(self) -> Any: ...

    @cached_property
    def key(self) -> str | None:
        """SHA-256 of all that token ids depend on; None for a slow tokenizer, which does not tell."""
        return None if self._backend is None else hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    @property
    def special_tokens(self) -> int:
        """Those that a row has besides its texts'."""
        return self.template.special_tokens

    def tokenize(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each distinct text, without special tokens."""
        distinct = list(dict.fromkeys(texts))
        known = {text: self._counted[text] for text in distinct if text in self._counted} if self._counted else {}
        distinct = [text for text in distinct if text not in known] if known else distinct
        if not distinct:
            return known
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(distinct, add_special_tokens=False)
            return known | {text: encoding.ids for text, encoding in zip(distinct, encodings, strict=True)}
        ids = self.tokenizer(distinct, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        return known | dict(zip(distinct, ids, strict=True))

    def _keep(self, ids: dict[str, list[int]]) -> None:
        """Until the next `encode`, which may never come for a request that was counted and refused."""
        if self._counted_tokens > MOST_KEPT_TOKENS:
            self._forget()
        self._counted.update(ids)
        self._counted_tokens += sum(map(len, ids.values()))

    def _forget(self) -> None:
        self._counted, self._counted_tokens = {}, 0


class PairEncoder(RowEncoder):
    """Rows of two texts each; of a long pair the second text is kept, and the first loses its beginning."""

    template: PairTemplate

    def count(self, pairs: Sequence[tuple[str, str]]) -> int:
        """Tokens of all rows together. The next `encode` does not tokenize these texts again."""
        ids = self.tokenize(text for pair in pairs for text in pair)
        self._keep(ids)
        rows = (len(ids[first]) + len(ids[second]) + self.special_tokens for first, second in pairs)
        return sum(min(tokens, self.max_tokens) for tokens in rows)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """One row per pair, in order."""
        return self.rows(pairs, self.ids_of(pairs))

    def ids_of(self, pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
        """Token ids of each distinct text, which every encoder of the same `key` can make rows of."""
        ids = self.tokenize(text for pair in pairs for text in pair)
        self._forget()
        return ids

    def rows(self, pairs: Sequence[tuple[str, str]], ids: Mapping[str, list[int]]) -> list[Row]:
        """One row per pair, in order, of tokenized texts."""
        return [self.join(ids[first], ids[second]) for first, second in pairs]

    def join(self, first: list[int], second: list[int]) -> Row:
        """Cut two tokenized texts to the limit and put the special tokens round them."""
        excess = len(first) + len(second) - self.room
        if excess > 0:
            second = second[: self.room]
            first = first[max(len(first) - (self.room - len(second)), 0) :]
        template = self.template
        head = template.prefix + first
        row = head + template.middle + second + template.suffix
        return Row(row, len(head) + template.middle_in_first, excess > 0)

    def _learn_template(self) -> PairTemplate:
        """Read the join off one encoded probe pair; raises LoadError if it is no concatenation."""
        first_text, second_text = PROBE
        plain = self.tokenize(PROBE)
        first, second = list(plain[first_text]), list(plain[second_text])
        whole = self.tokenizer(first_text, second_text, truncation=False, padding=False)
        ids = list(whole["input_ids"])
        types = whole.get("token_type_ids")
        first_at = find(ids, first, 0)
        second_at = find(ids, second, first_at + len(first)) if first_at >= 0 else -1
        if second_at < 0:
            raise LoadError(
                f"{type(self.tokenizer).__name__} does not encode a pair as its two texts joined by special tokens: "
                f"{first_text!r} + {second_text!r} gave {ids}; this tokenizer is not supported"
            )
        first_end, second_end = first_at + len(first), second_at + len(second)
        middle_types = list(types[first_end:second_at]) if types is not None else []
        second_type = types[second_at] if types is not None else 0
        return PairTemplate(
            prefix=ids[:first_at],
            middle=ids[first_end:second_at],
            suffix=ids[second_end:],
            has_type_ids=types is not None,
            middle_in_first=sum(1 for kind in middle_types if kind != second_type),
            second_type=second_type,
        )


class TextEncoder(RowEncoder):
    """Rows of one text each; a long text loses its end."""

    template: TextTemplate

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of all rows together. The next `encode` does not tokenize these texts again."""
        ids = self.tokenize(texts)
        self._keep(ids)
        return sum(min(len(ids[text]) + self.special_tokens, self.max_tokens) for text in texts)

    def encode(self, texts: Sequence[str]) -> list[Row]:
        """One row per text, in order."""
        ids = self.tokenize(texts)
        self._forget()
        prefix, suffix = self.template.prefix, self.template.suffix
        rows = []
        for text in texts:
            row = [*prefix, *ids[text][: self.room], *suffix]
            rows.append(Row(row, len(row), len(ids[text]) > self.room))
        return rows

    def _learn_template(self) -> TextTemplate:
        """Read the special tokens off one encoded probe; raises LoadError if they do not stand round the text."""
        text = PROBE[0]
        plain = list(self.tokenize([text])[text])
        whole = self.tokenizer(text, truncation=False, padding=False)
        ids, types = list(whole["input_ids"]), whole.get("token_type_ids")
        start = find(ids, plain, 0)
        if start < 0 or (types is not None and any(types)):
            raise LoadError(
                f"{type(self.tokenizer).__name__} does not encode a text as special tokens round it, all of segment 0: "
                f"{text!r} gave {ids}; this tokenizer is not supported"
            )
        return TextTemplate(ids[:start], ids[start + len(plain) :], types is not None)


def find(ids: list[int], part: list[int], start: int) -> int:
    """Index of the first occurrence of `part` in `ids` from `start` on, or -1."""
    if not part:
        return -1
    return next((i for i in range(start, len(ids) - len(part) + 1) if ids[i : i + len(part)] == part), -1)
