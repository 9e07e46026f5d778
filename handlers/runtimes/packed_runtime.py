"""Forward passes over packed rows on a processor: the fast way for BERT and RoBERTa models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from handlers.errors import LoadError
from handlers.runtimes.linear import Watched
from handlers.runtimes.packed_bert import PackedBert
from handlers.settings import Settings
from handlers.tokenization import PairEncoder, Row

WARM_UP_LENGTHS = 4
"""Row lengths tried at load, evenly spread up to the limit."""


class PackedScorer:
    """Scores rows with a PackedBert."""

    def __init__(self, bert: PackedBert, encoder: PairEncoder, settings: Settings) -> None:
        self.bert = bert
        self.rows_per_pass = settings.rows_per_pass
        self.max_tokens = settings.max_tokens
        self.pad_id = encoder.pad_id
        if self.max_tokens > bert.longest:
            raise LoadError(f"max_tokens is {self.max_tokens}, but the model has positions for {bert.longest} tokens")

    @classmethod
    def of(cls, model: Any, encoder: PairEncoder, settings: Settings, dtype: torch.dtype) -> PackedScorer:
        """A float model, computed as it is."""
        return cls(PackedBert(model, *segments(encoder), dtype), encoder, settings)

    @classmethod
    @torch.inference_mode()
    def quantized(cls, model: Any, encoder: PairEncoder, settings: Settings, samples: Sequence[Row]) -> PackedScorer:
        """A float32 model, computed in 8-bit integers, whose ranges `samples` show; the last layer in bfloat16."""
        bert = PackedBert(model, *segments(encoder), torch.float32, torch.bfloat16, linear=Watched)
        bert.logits(sorted(samples, key=length))
        bert.quantize()
        return cls(bert, encoder, settings)

    def scores(self, rows: Sequence[Row], deadline: float) -> list[float | None]:
        """A logit per row, in order; None where the deadline (time.monotonic seconds) came first."""
        found: list[float | None] = [None] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        with torch.inference_mode():
            for start in range(0, len(rows), self.rows_per_pass):
                if start and time.monotonic() > deadline:
                    break
                places = by_length[start : start + self.rows_per_pass]
                logits = self.bert.logits([rows[i] for i in places])
                for place, score in zip(places, logits.tolist(), strict=True):
                    found[place] = score
        return found

    def warm_up(self) -> None:
        """Some passes, short and long, single and full, to choose kernels and get memory."""
        step = max(self.max_tokens // WARM_UP_LENGTHS, 1)
        for tokens in range(step, self.max_tokens + 1, step):
            row = Row([self.pad_id] * tokens, tokens, truncated=False)
            for count in (1, self.rows_per_pass):
                self.scores([row] * count, deadline=float("inf"))


def segments(encoder: PairEncoder) -> tuple[bool, int]:
    """How the tokenizer marks a row's second text."""
    return encoder.template.has_type_ids, encoder.template.second_type


def length(row: Row) -> int:
    return len(row.ids)
