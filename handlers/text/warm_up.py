"""First passes of a runtime, before clients wait for them."""

from __future__ import annotations

from handlers.tasks.multiple_choice.task import Scorer
from handlers.text.tokenization import Row


def warm_up(scorer: Scorer, max_tokens: int, n_lengths: int, rows_per_pass: int, pad_id: int) -> None:
    """Passes of `n_lengths` row lengths, evenly spread up to the limit, full ones and single rows."""
    step = max(max_tokens // n_lengths, 1)
    for tokens in range(step, max_tokens + 1, step):
        row = Row([pad_id] * tokens, tokens, truncated=False)
        for count in (1, rows_per_pass):
            scorer.scores([row] * count, deadline=float("inf"))
