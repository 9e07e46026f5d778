from __future__ import annotations

import numpy as np

from marctl_handlers.text.packing import Block, Packing, filled
from marctl_handlers.text.tokenization import Row

ROWS = [Row([2, 7, 3, 8, 3], 3, False), Row([2, 7, 3, 9, 3], 3, False), Row([2, 7, 7, 3, 8, 3], 4, False)]


def test_blocks_hold_rows_of_one_length_and_cover_every_token() -> None:
    packing = Packing.of(ROWS, positions=100)
    assert packing.blocks == [Block(0, 2, 5), Block(10, 1, 6)]
    assert packing.starts[:3].tolist() == [0, 5, 10]
    assert packing.blocks[-1].tokens.stop == len(packing.sources) == 16


def test_sources_give_every_token_back_with_its_position_and_segment() -> None:
    packing = Packing.of(ROWS, positions=100)
    assert packing.ids[packing.sources].tolist() == [token for row in ROWS for token in row.ids]
    assert packing.places[packing.sources].tolist() == [0, 1, 2, 103, 104] * 2 + [0, 1, 2, 3, 104, 105]


def test_what_rows_share_stands_once() -> None:
    packing = Packing.of(ROWS, positions=100)
    keys = list(zip(packing.ids.tolist(), packing.places.tolist(), strict=True))
    assert len(set(keys)) == len(set(keys[:10])) == 10


def test_uncounted_tokens_take_no_position() -> None:
    packing = Packing.of([Row([0, 5, 1, 6, 2], 3, False)], positions=100, uncounted=1)
    assert packing.places[packing.sources][:5].tolist() == [1, 2, 0, 103, 104]


def test_few_shapes_come_of_many_passes_for_little_more_work() -> None:
    counts = [len(filled(np.zeros(n, dtype=np.int64))) for n in range(1, 4097)]
    assert all(n <= count <= n + max(n / 16, 8) for n, count in enumerate(counts, 1))
    assert len(set(counts)) < 150
