"""A pass's rows as one list of numbers, which goes to the GPU in one copy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marctl_handlers.text.packing import positions_of
from marctl_handlers.text.tokenization import Row

SMALLEST_TOKENS = 64
LARGEST_TOKENS = 16384
"""Of a pass. Its states, the widest of which are those between the two products of a feed-forward layer, take some
200 MB in bfloat16 for a model of BERT-base's size."""
SIZES_PER_DOUBLING = 4
TOKENS_PER_ROW = 8
"""A pass has room for one row in so many tokens; passes of shorter rows have more room than tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Room of a pass; it is filled up by tokens of no row, and by rows of no token."""

    tokens: int
    rows: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of a pass's parts: token ids, their places, the rows' bounds."""
        return self.tokens, self.tokens, self.rows + 1


def shapes() -> list[Shape]:
    """The smallest first. Few, so that each can be kept as a graph; close together, so that little is filled up."""
    counts = []
    count = SMALLEST_TOKENS
    while count <= LARGEST_TOKENS:
        counts += [count + count * part // SIZES_PER_DOUBLING for part in range(SIZES_PER_DOUBLING)]
        count *= 2
    return [Shape(count, count // TOKENS_PER_ROW) for count in counts if count <= LARGEST_TOKENS]


SHAPES = shapes()


def shape_for(tokens: int, rows: int) -> Shape:
    """The smallest of SHAPES that has room; one of its own for what none of them has."""
    needed = max(tokens, rows * TOKENS_PER_ROW)
    place = bisect_left(SHAPES, needed, key=lambda shape: shape.tokens)
    return SHAPES[place] if place < len(SHAPES) else Shape(tokens, rows)


def passes(rows: Sequence[Row], tokens_per_pass: int, rows_per_pass: int) -> Iterator[Sequence[Row]]:
    """The rows in order, as many together as fit; a row is never cut."""
    start = tokens = 0
    for end, row in enumerate(rows):
        if end > start and (tokens + len(row.ids) > tokens_per_pass or end - start == rows_per_pass):
            yield rows[start:end]
            start, tokens = end, 0
        tokens += len(row.ids)
    if rows:
        yield rows[start:]


def lay_out(rows: Sequence[Row], positions: int, uncounted: int | None, *, pinned: bool) -> tuple[Tensor, Shape]:
    """int32: the parts of a pass one behind another, as `Shape.sizes` says.

    A place is a token's position, plus `positions`, the length of the position table, for tokens of the second segment.
    `pinned`: in memory that a GPU reads by itself, so that nobody waits for the copy.
    """
    ids, places, starts, _ = positions_of(rows, positions, uncounted)
    shape = shape_for(len(ids), len(rows))
    packed = torch.zeros(sum(shape.sizes), dtype=torch.int32, pin_memory=pinned)
    into = packed.numpy()
    into[: len(ids)] = ids
    into[shape.tokens : shape.tokens + len(ids)] = places
    bounds = into[2 * shape.tokens :]
    bounds[: len(rows)] = starts
    bounds[len(rows) :] = len(ids)
    return packed, shape
