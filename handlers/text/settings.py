"""Settings of tasks that run transformer models over texts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta

from marctl_handlers.core.settings import Count, Settings

Precision = Literal["auto", "float32", "bfloat16", "int8"]
PoolingMode = Literal["mean", "cls", "max"]
"""How a row's vector is made of its tokens' (handlers/text/pooling.py)."""
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
ROWS_IN_A_REQUEST = 32
"""Of the longest kind: the limit of a request's tokens if the version names none."""


class TextSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rows are what the model computes: a text, or a pair of texts."""

    precision: Precision = "auto"
    """`auto`: bfloat16 where the processor computes in it, float32 elsewhere. `int8`: 8-bit integers where it has fast
    ones (processor.py), else `auto`; for BERT and RoBERTa models, with ranges that were learned for the version
    (`marctl quantize`), or else that its samples show."""
    max_tokens: Annotated[int, Meta(ge=8)] = 128
    """Longest row, special tokens included; longer ones are cut."""
    rows_per_pass: Count | None = None
    """Rows of one forward pass, alike in length, at most; if left out, what suits the model's runtime."""
    max_request_tokens: Count | None = None
    """Tokens of all rows of one request; 32 of the longest rows if left out. What one request may cost bounds how long
    its neighbours wait."""

    @property
    def max_cost(self) -> int:
        return self.max_request_tokens or ROWS_IN_A_REQUEST * self.max_tokens
