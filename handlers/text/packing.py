"""A pass's rows as one list of tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marctl_handlers.text.tokenization import Row

LONGEST = 1 << 16
Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one length that lie one behind another: where they start, how many, how long."""

    start: int
    rows: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.rows * self.length)


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows, the shortest first, token behind token. All tensors: int64, filled up to a round length by repetition."""

    blocks: list[Block]
    starts: Tensor
    """(rows,): each row's first token."""
    ids: Tensor
    """(distinct,): the distinct (token id, position, segment) of the pass; choices share their question's."""
    places: Tensor
    """(distinct,): position, plus the length of the position table for tokens of the second segment."""
    sources: Tensor
    """(tokens,): which of the distinct each token is."""

    @classmethod
    def of(cls, rows: Sequence[Row], positions: int, uncounted: int | None = None) -> Packing:
        """`rows` sorted by length; the other two as `positions_of` takes them."""
        ids, places, starts, lengths = positions_of(rows, positions, uncounted)
        keys, sources = np.unique(ids * LONGEST + places, return_inverse=True)
        firsts = np.flatnonzero(np.diff(lengths, prepend=-1))
        counts = np.diff(firsts, append=len(rows))
        return cls(
            [Block(int(starts[i]), int(n), int(lengths[i])) for i, n in zip(firsts, counts, strict=True)],
            filled(starts),
            filled(keys // LONGEST),
            filled(keys % LONGEST),
            filled(sources),
        )


def positions_of(
    rows: Sequence[Row], positions: int, uncounted: int | None
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Of every token its id and place (as in Packing), of every row its first token and length.

    `positions`: length of the position table. Without `uncounted` a row's positions are 0, 1, 2 ...; with it, tokens of
    this id have position 0 and the others 1, 2, 3 ..., as RoBERTa counts (create_position_ids_from_input_ids).
    """
    lengths = np.array([len(row.ids) for row in rows])
    starts = np.cumsum(lengths) - lengths
    ids = np.array([token for row in rows for token in row.ids])
    offsets = np.arange(len(ids)) - np.repeat(starts, lengths)
    places = offsets
    if uncounted is not None:
        counted = ids != uncounted
        before = np.cumsum(counted) - counted
        places = np.where(counted, before - np.repeat(before[starts], lengths) + 1, 0)
    second = np.repeat(np.array([row.second_at for row in rows]), lengths)
    return ids, places + np.where(offsets >= second, positions, 0), starts, lengths


def filled(values: np.ndarray[Any, Any]) -> Tensor:
    """The values and then some of the first one, as many as round their number up by at most a sixteenth.

    oneDNN makes a kernel for each shape that it meets, which takes longer than computing a pass of a few rows.
    """
    count = len(values)
    step = max(1 << (count.bit_length() - 5 if count > 16 else 0), 8)
    return torch.from_numpy(np.concatenate([values, np.full(-count % step, values[0])]))
