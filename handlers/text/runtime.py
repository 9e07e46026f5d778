"""What a runtime is: forward passes over token rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from marctl_handlers.text.tokenization import Row


class Runtime(Protocol):
    """`runtime` names library, number format and device: what else its values depend on."""

    runtime: str

    def run(self, rows: Sequence[Row], deadline: float) -> list[Any]:
        """A value per row, in order: a number or a list of them, as the model's head gives.

        None where the deadline (time.monotonic seconds) came first; the first pass is computed in any case.
        """

    def warm_up(self) -> None:
        """Run the shapes that requests will bring."""


def warm_up(
    runtime: Runtime,
    max_tokens: int,
    n_lengths: int,
    rows_per_pass: int,
    pad_id: int,
    tokens_per_pass: int | None = None,
) -> None:
    """Passes of `n_lengths` row lengths, evenly spread up to the limit, full ones and single rows."""
    step = max(max_tokens // n_lengths, 1)
    for tokens in range(step, max_tokens + 1, step):
        row = Row([pad_id] * tokens, tokens, truncated=False)
        full = min(rows_per_pass, max(tokens_per_pass // tokens, 1)) if tokens_per_pass else rows_per_pass
        for count in (1, full):
            runtime.run([row] * count, deadline=float("inf"))
