"""Forward passes of BERT and RoBERTa models over a packed batch of fixed shape, without a look at what it holds.

Nothing here waits for the device, and nothing depends on a value but through tensors: a pass can be captured as a CUDA
graph. Tensors are (tokens, hidden) unless stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marctl_handlers.text.gpu.attention import Attend, attention_on
from marctl_handlers.text.gpu.batch import LARGEST_TOKENS, Shape
from marctl_handlers.text.linear import FloatLinear
from marctl_handlers.text.packed_bert import Layer, PackedBert
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.tokenization import PairTemplate, TextTemplate


@dataclass(frozen=True)
class Rows:
    """Where a batch's rows lie, and how they attend."""

    bounds: Tensor
    """int32, (rows + 1,)"""
    starts: Tensor
    """int32, (rows,): each row's first token; some token for rows of none."""
    each: Tensor
    """int32, (rows + 1,): bounds of rows of one token."""
    longest: int
    heads: int
    attend: Attend


Head = Callable[[Tensor, Rows], Tensor]
"""float32, (rows, ...): a value per row from the encoder's states."""


class GpuBert(PackedBert):
    """An encoder and its head on one device. All rows attend in one kernel, whatever their lengths."""

    def __init__(
        self,
        model: Any,
        template: PairTemplate | TextTemplate,
        dtype: torch.dtype,
        longest: int,
        pooling: Pooling | None = None,
    ) -> None:
        """`model`: on its device, one for multiple choice, or with `pooling` any. No row is longer than `longest`."""
        super().__init__(model.base_model, template, dtype, model.config.num_hidden_layers)
        self.device: torch.device = model.device
        self.head: Head = GpuPooling(pooling) if pooling else FirstToken.of(model, self.layers.pop(), dtype)
        self.longest_row = longest
        self._attend_rows = attention_on(self.device)
        self._count = torch.arange(LARGEST_TOKENS, dtype=torch.int32, device=self.device)

    @property
    def table(self) -> tuple[int, int | None]:
        """Length of the position table, and the token that takes no position, as `lay_out` wants them."""
        return self._positions, self._uncounted

    def compute(self, packed: Tensor, shape: Shape) -> Tensor:
        """A value per row, float32, (shape.rows, ...), of what `lay_out` made."""
        ids, places, bounds = packed.split(shape.sizes)
        starts = bounds[:-1].clamp(max=shape.tokens - 1)
        each = self._count[: shape.rows + 1]
        rows = Rows(bounds, starts, each, self.longest_row, self.heads, self._attend_rows)
        h = self._norm(self._words.index_select(0, ids).add_(self._places.index_select(0, places)))
        for layer in self.layers:
            h = layer.finish(self._context(layer.qkv(h), rows), h)
        return self.head(h, rows)

    def _context(self, qkv: Tensor, rows: Rows) -> Tensor:
        query, key, value = split_heads(qkv, 3, rows.heads)
        context = rows.attend(query, key, value, rows.bounds, rows.bounds, rows.longest, rows.longest)
        return context.reshape(len(qkv), -1)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(tokens, parts * hidden) -> one view of (tokens, heads, head size) for each part."""
    return x.view(len(x), parts, heads, -1).unbind(1)


@dataclass
class FirstToken:
    """The last layer for each row's first token alone, which is all that pooler and classifier read."""

    layer: Layer
    query: FloatLinear
    keys_values: FloatLinear
    pooler: FloatLinear
    classifier: FloatLinear

    @classmethod
    def of(cls, model: Any, layer: Layer, dtype: torch.dtype) -> FirstToken:
        qkv = layer.qkv
        assert isinstance(qkv, FloatLinear)
        hidden = qkv.weight.shape[1]

        def take(part: Any) -> FloatLinear:
            return FloatLinear(part.weight.to(dtype), part.bias.to(dtype))

        return cls(
            layer,
            FloatLinear(qkv.weight[:hidden], qkv.bias[:hidden]),
            FloatLinear(qkv.weight[hidden:], qkv.bias[hidden:]),
            take(model.base_model.pooler.dense),
            take(model.classifier),
        )

    def __call__(self, h: Tensor, rows: Rows) -> Tensor:
        """Logits, float32, (rows,)."""
        first = h.index_select(0, rows.starts)
        (query,) = split_heads(self.query(first), 1, rows.heads)
        key, value = split_heads(self.keys_values(h), 2, rows.heads)
        context = rows.attend(query, key, value, rows.each, rows.bounds, 1, rows.longest)
        x = self.layer.finish(context.reshape(len(first), -1), first)
        return self.classifier(torch.tanh(self.pooler(x))).float().view(-1)


@dataclass(frozen=True)
class GpuPooling:
    """A vector per row from all of its tokens' states."""

    pooling: Pooling

    def __call__(self, h: Tensor, rows: Rows) -> Tensor:
        """float32, (rows, hidden)."""
        if self.pooling.mode == "cls":
            return self.pooling.scaled(h.index_select(0, rows.starts).float())
        count = len(rows.starts)
        # Tokens of no row get the place behind the last one.
        places = torch.arange(len(h), dtype=torch.int32, device=h.device)
        owners = torch.searchsorted(rows.bounds, places, right=True) - 1
        if self.pooling.mode == "max":
            pooled = h.new_full((count + 1, h.shape[1]), -torch.inf)
            pooled.scatter_reduce_(0, owners.unsqueeze(1).expand_as(h), h, "amax")
            return self.pooling.scaled(pooled[:count].float())
        sums = h.new_zeros((count + 1, h.shape[1]), dtype=torch.float32).index_add_(0, owners, h.float())
        lengths = rows.bounds.diff().clamp(min=1)
        return self.pooling.scaled(sums[:count] / lengths.unsqueeze(1))
