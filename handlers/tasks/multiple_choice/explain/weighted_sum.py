"""Several versions' explanations of one choice as one: every method's scores are linear in the model's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from marctl_handlers.explanations.weighted_sum import summed_figures, summed_scores
from marctl_handlers.tasks.multiple_choice.explain.answer import DIGITS, Explanation, Stretch, WordScore


def weighted_sums(explanations: Sequence[Sequence[Explanation]], weights: Sequence[float]) -> list[Explanation]:
    """One explanation per case, of each version's explanations of the same cases."""
    return [weighted_sum(case, weights) for case in zip(*explanations, strict=True)]


def weighted_sum(parts: Sequence[Explanation], weights: Sequence[float]) -> Explanation:
    figures = summed_figures(parts, weights, DIGITS)
    return msgspec.structs.replace(parts[0], **figures, words=words_of(parts, weights), not_seen=unseen(parts))


def words_of(parts: Sequence[Explanation], weights: Sequence[float]) -> list[WordScore]:
    """Each word once, in the order of the first version that saw it; tokenizers may cut words differently."""
    found: dict[tuple[str, int, int], list[tuple[WordScore, float]]] = {}
    for part, weight in zip(parts, weights, strict=True):
        for word in part.words:
            found.setdefault((word.field, word.start, word.end), []).append((word, weight))
    return [summed(same) for same in found.values()]


def summed(same: Sequence[tuple[WordScore, float]]) -> WordScore:
    return msgspec.structs.replace(
        same[0][0],
        **summed_scores(same, DIGITS),
        unknown=any(word.unknown for word, _ in same),
        partly_cut=any(word.partly_cut for word, _ in same),
    )


def unseen(parts: Sequence[Explanation]) -> list[Stretch]:
    """What no version saw."""
    common = list(parts[0].not_seen)
    for part in parts[1:]:
        common = [stretch for one in common for other in part.not_seen for stretch in overlap(one, other)]
    return common


def overlap(one: Stretch, other: Stretch) -> Iterator[Stretch]:
    start, end = max(one.start, other.start), min(one.end, other.end)
    if one.field == other.field and start < end:
        yield Stretch(one.field, start, end)
