"""Forward passes over packed rows on a processor: the fast way for BERT and RoBERTa models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marctl_handlers.text.linear import Watched, float_linear
from marctl_handlers.text.packed_bert import PackedBert
from marctl_handlers.text.packed_heads import FirstTokenHead, PoolingHead
from marctl_handlers.text.packing import Packing
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.processor import Processor
from marctl_handlers.text.ranges import InputRange
from marctl_handlers.text.runtime import warm_up
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import Row, RowEncoder

ROWS_PER_PASS = 128
"""If the version names none: a server batch of 32 questions in one pass, for each pass has a fixed cost."""
TOKENS_PER_PASS = 4096
"""At most, so that long rows take no more memory than short ones."""
WARM_UP_LENGTHS = 4
"""Row lengths tried at load, evenly spread up to the limit."""


Head = Callable[[Tensor, Packing], Tensor]
"""A value per row, in order, from the encoder's states."""


class PackedRuntime:
    """Computes rows with a PackedBert and a head."""

    ranges: Mapping[str, InputRange] | None = None
    """Of the products in 8-bit integers, if there are such."""

    def __init__(
        self,
        bert: PackedBert,
        head: Head,
        encoder: RowEncoder,
        settings: TextSettings,
        processor: Processor,
        numbers: object,
    ) -> None:
        """`numbers`: what the model computes in."""
        self.bert = bert
        self.head = head
        self.rows_per_pass = settings.rows_per_pass or ROWS_PER_PASS
        self.max_tokens = settings.max_tokens
        self.pad_id = encoder.pad_id
        self.runtime = f"torch {torch.__version__} packed {numbers} cpu {processor}"
        bert.refuse_longer(self.max_tokens)

    @classmethod
    def of(
        cls,
        model: Any,
        encoder: RowEncoder,
        settings: TextSettings,
        processor: Processor,
        dtype: torch.dtype,
        pooling: Pooling | None = None,
    ) -> PackedRuntime:
        """A float model, computed as it is."""
        bert = PackedBert(model.base_model, encoder.template, dtype, whole_layers(model, pooling), float_linear)
        return cls(bert, head_of(model, pooling, dtype), encoder, settings, processor, dtype)

    @classmethod
    @torch.inference_mode()
    def quantized(
        cls,
        model: Any,
        encoder: RowEncoder,
        settings: TextSettings,
        processor: Processor,
        ranges: Mapping[str, InputRange],
        pooling: Pooling | None = None,
    ) -> PackedRuntime:
        """A float32 model, whose layers are computed in 8-bit integers, but for products without a range; a last layer
        for the first token alone is in floating point."""
        otherwise = processor.numbers("auto")
        bert = PackedBert(model.base_model, encoder.template, torch.float32, whole_layers(model, pooling))
        n_float = sum(name not in ranges for name, _ in bert.products())
        bert.quantize(ranges, processor.int8_middle, getattr(torch, otherwise))
        numbers = f"int8 but {n_float} products in {otherwise}" if n_float else "int8"
        head = head_of(model, pooling, getattr(torch, otherwise))
        made = cls(bert, head, encoder, settings, processor, numbers)
        made.ranges = ranges
        return made

    def run(self, rows: Sequence[Row], deadline: float) -> list[Any]:
        """A value per row, in order; None where the deadline (time.monotonic seconds) came first."""
        found: list[Any] = [None] * len(rows)
        with torch.inference_mode():
            for number, places in enumerate(self._passes(rows)):
                if number and time.monotonic() > deadline:
                    break
                values = self.head(*self.bert([rows[i] for i in places]))
                for place, value in zip(places, values.tolist(), strict=True):
                    found[place] = value
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
        warm_up(self, self.max_tokens, WARM_UP_LENGTHS, self.rows_per_pass, self.pad_id, TOKENS_PER_PASS)


def whole_layers(model: Any, pooling: Pooling | None) -> int:
    """Layers that every token goes through: without pooling the last one is the head's."""
    n_layers: int = model.config.num_hidden_layers
    return n_layers if pooling else n_layers - 1


@torch.inference_mode()
def watched(model: Any, encoder: RowEncoder, rows: Sequence[Row], pooling: Pooling | None = None) -> PackedBert:
    """A float32 model that has seen sample rows, to learn ranges from."""
    bert = PackedBert(model.base_model, encoder.template, torch.float32, whole_layers(model, pooling), linear=Watched)
    bert(sorted(rows, key=length))
    return bert


def head_of(model: Any, pooling: Pooling | None, dtype: torch.dtype) -> Head:
    """The model's own head for the first token, unless its rows are to be pooled."""
    return PoolingHead(pooling) if pooling else FirstTokenHead.of(model, dtype)


def length(row: Row) -> int:
    return len(row.ids)
