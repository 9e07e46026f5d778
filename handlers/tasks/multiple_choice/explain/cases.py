"""One explanation as the methods see it: token rows, and the words whose contributions are computed.

The question and the context stand in the row of every choice: such a word is present in all of a case's rows or absent
from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marctl_handlers.tasks.multiple_choice.explain.request import ExplainQuestion, Options
from marctl_handlers.tasks.multiple_choice.explain.words import Aligned, Span
from marctl_handlers.tasks.multiple_choice.schema import first_text
from marctl_handlers.text.tokenization import PairEncoder

SPECIAL = -1
"""In place of a word, for tokens that the template adds."""


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of one of the client's strings. `unknown`: the model saw a token for words that it does not know."""

    field: str
    start: int
    end: int
    text: str
    unknown: bool
    partly_cut: bool


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One token row; `words` holds each token's word, or SPECIAL."""

    ids: list[int]
    second_at: int
    words: list[int]


@dataclass(frozen=True, slots=True)
class Case:
    """One choice to be explained. The target is computed from the rows' logits; the choice's own row is the first."""

    choice: int
    against: int | None
    options: Options
    rows: list[CaseRow]
    words: list[Word]
    not_seen: list[tuple[str, int, int]]
    """Field, start and end of what was cut off, or has no token."""
    baseline_id: int

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)


def cases_of(
    question: ExplainQuestion,
    probabilities: Sequence[float],
    texts: Mapping[str, Aligned],
    encoder: PairEncoder,
    baselines: Mapping[str, int],
) -> list[Case]:
    """A case for each choice that is to be explained."""
    options = question.explain
    baseline_id = baselines[options.baseline] if options.baseline else next(iter(baselines.values()))
    chosen = max(range(len(probabilities)), key=probabilities.__getitem__)
    asked = {"chosen": [chosen], "all": list(range(len(question.choices)))}
    found = []
    for choice in options.choices if isinstance(options.choices, list) else asked[options.choices]:
        against = None
        if options.target == "margin":
            others = [i for i in range(len(probabilities)) if i != choice]
            against = max(others, key=probabilities.__getitem__) if options.against is None else options.against
        rivals = [i for i in range(len(probabilities)) if i != choice] if options.target == "probability" else []
        rows = [choice, *([] if against is None else [against]), *rivals]
        found.append(make_case(question, choice, against, rows, texts, encoder, baseline_id))
    return found


def make_case(
    question: ExplainQuestion,
    choice: int,
    against: int | None,
    rows: Sequence[int],
    texts: Mapping[str, Aligned],
    encoder: PairEncoder,
    baseline_id: int,
) -> Case:
    collector = Collector(question, encoder)
    first = texts[first_text(question)]
    made = [collector.row(first, texts[question.choices[index]], f"choices[{index}]") for index in rows]
    found = collector.words()
    return Case(choice, against, question.explain, made, found, collector.not_seen(), baseline_id)


class Collector:
    """Gathers the words of one case over its rows, in reading order of each field."""

    def __init__(self, question: ExplainQuestion, encoder: PairEncoder) -> None:
        self._question = question
        self._encoder = encoder
        self._unknown = encoder.tokenizer.unk_token_id
        self._places: dict[tuple[str, int], int] = {}
        self._words: list[dict[str, Any]] = []
        self._seen_anywhere: set[tuple[str, int]] = set()
        self._all: dict[tuple[str, int], Span] = {}

    def row(self, first: Aligned, second: Aligned, field: str) -> CaseRow:
        """Join two texts as for a prediction, and number the words that are left of them."""
        row = self._encoder.join(first.ids, second.ids)
        template = self._encoder.template
        first_count = row.second_at - template.middle_in_first - len(template.prefix)
        second_count = len(row.ids) - template.special_tokens - first_count
        kept_first = (len(first.ids) - first_count, len(first.ids))
        words = [SPECIAL] * len(template.prefix)
        words += self._take(first, kept_first, None)
        words += [SPECIAL] * len(template.middle)
        words += self._take(second, (0, second_count), field)
        words += [SPECIAL] * len(template.suffix)
        return CaseRow(row.ids, row.second_at, words)

    def _take(self, text: Aligned, kept: Span, field: str | None) -> list[int]:
        """Word numbers of a text's kept tokens; field None means context and question together."""
        keys = [self._key(span, field) for span in text.spans]
        for key, span in zip(keys, text.spans, strict=True):
            self._all[key] = self._local(span, field)
        cut = {text.piece_of[i] for i in [*range(kept[0]), *range(kept[1], len(text.ids))]}
        numbers = []
        for i in range(*kept):
            piece = text.piece_of[i]
            key = keys[piece]
            if key not in self._places:
                self._places[key] = len(self._words)
                self._words.append({"key": key, "unknown": False, "partly_cut": False})
            word = self._words[self._places[key]]
            word["unknown"] |= text.ids[i] == self._unknown
            word["partly_cut"] |= piece in cut
            numbers.append(self._places[key])
        return numbers

    def _key(self, span: Span, field: str | None) -> tuple[str, int]:
        start, _ = self._local(span, field)
        return self._field(span, field), start

    def _field(self, span: Span, field: str | None) -> str:
        if field is not None:
            return field
        context = self._question.context
        return "context" if context and span[0] < len(context) else "question"

    def _local(self, span: Span, field: str | None) -> Span:
        """A span of the joined first text, as a span of the context or of the question."""
        context = self._question.context
        if field is not None or not context:
            return span
        if span[0] < len(context):
            return span[0], min(span[1], len(context))
        shift = len(context) + 1
        return max(span[0] - shift, 0), span[1] - shift

    def words(self) -> list[Word]:
        texts = {"question": self._question.question, "context": self._question.context or ""}
        texts |= {f"choices[{i}]": choice for i, choice in enumerate(self._question.choices)}
        found = []
        for word in self._words:
            field, _ = word["key"]
            start, end = self._all[word["key"]]
            found.append(Word(field, start, end, texts[field][start:end], word["unknown"], word["partly_cut"]))
        return found

    def not_seen(self) -> list[tuple[str, int, int]]:
        """Stretches of words of which no row has a token."""
        found: list[tuple[str, int, int]] = []
        before = None
        for key, (start, end) in self._all.items():
            if key in self._places:
                before = None
                continue
            if before == key[0]:
                found[-1] = (key[0], found[-1][1], end)
            else:
                found.append((key[0], start, end))
            before = key[0]
        return found
