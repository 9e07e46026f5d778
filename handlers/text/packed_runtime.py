"""Forward passes over packed rows on a processor: the fast way for BERT and RoBERTa models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from handlers.core.errors import LoadError
from handlers.text.linear import Watched
from handlers.text.packed_bert import PackedBert
from handlers.text.runtime import warm_up
from handlers.text.settings import TextSettings
from handlers.text.tokenization import PairEncoder, Row

ROWS_PER_PASS = 128
"""If the version names none: a server batch of 32 questions in one pass, for each pass has a fixed cost."""
TOKENS_PER_PASS = 4096
"""At most, so that long rows take no more memory than short ones."""
WARM_UP_LENGTHS = 4
"""Row lengths tried at load, evenly spread up to the limit."""


class PackedRuntime:
    """Scores rows with a PackedBert."""

    def __init__(self, bert: PackedBert, encoder: PairEncoder, settings: TextSettings, numbers: object) -> None:
        """`numbers`: what the model computes in."""
        self.bert = bert
        self.rows_per_pass = settings.rows_per_pass or ROWS_PER_PASS
        self.max_tokens = settings.max_tokens
        self.pad_id = encoder.pad_id
        capability = torch.backends.cpu.get_cpu_capability()
        self.runtime = f"torch {torch.__version__} packed {numbers} cpu {capability}"
        if self.max_tokens > bert.longest:
            raise LoadError(f"max_tokens is {self.max_tokens}, but the model has positions for {bert.longest} tokens")

    @classmethod
    def of(cls, model: Any, encoder: PairEncoder, settings: TextSettings, dtype: torch.dtype) -> PackedRuntime:
        """A float model, computed as it is."""
        return cls(PackedBert(model, *segments(encoder), dtype), encoder, settings, dtype)

    @classmethod
    @torch.inference_mode()
    def quantized(
        cls, model: Any, encoder: PairEncoder, settings: TextSettings, samples: Sequence[Row]
    ) -> PackedRuntime:
        """A float32 model, computed in 8-bit integers, whose ranges `samples` show; the last layer in bfloat16."""
        bert = PackedBert(model, *segments(encoder), torch.float32, torch.bfloat16, linear=Watched)
        bert.logits(sorted(samples, key=length))
        bert.quantize()
        return cls(bert, encoder, settings, "int8")

    def run(self, rows: Sequence[Row], deadline: float) -> list[Any]:
        """A value per row, in order; None where the deadline (time.monotonic seconds) came first."""
        found: list[Any] = [None] * len(rows)
        with torch.inference_mode():
            for number, places in enumerate(self._passes(rows)):
                if number and time.monotonic() > deadline:
                    break
                logits = self.bert.logits([rows[i] for i in places])
                for place, score in zip(places, logits.tolist(), strict=True):
                    found[place] = score
        return found

    def _passes(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """Places of the rows of each pass, the shortest first."""
        places: list[int] = []
        tokens = 0
        for place in sorted(range(len(rows)), key=lambda i: length(rows[i])):
            size = length(rows[place])
            if places and (len(places) == self.rows_per_pass or tokens + size > TOKENS_PER_PASS):
                yield places
                places, tokens = [], 0
            places.append(place)
            tokens += size
        if places:
            yield places

    def warm_up(self) -> None:
        """Some passes, short and long, single and full, to choose kernels and get memory."""
        warm_up(self, self.max_tokens, WARM_UP_LENGTHS, self.rows_per_pass, self.pad_id)


def segments(encoder: PairEncoder) -> tuple[bool, int]:
    """How the tokenizer marks a row's second text."""
    return encoder.template.has_type_ids, encoder.template.second_type


def length(row: Row) -> int:
    return len(row.ids)
