"""What becomes of an encoder's states over packed rows: a logit per row, or a vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marctl_handlers.text.linear import FloatFeedForward, Linear, float_linear
from marctl_handlers.text.packed_bert import Norm
from marctl_handlers.text.packing import Packing
from marctl_handlers.text.pooling import Pooling


@dataclass
class FirstTokenHead:
    """A model's last layer, pooler and classifier, for the first token of each row, which is all that they read.

    Exact, up to rounding: scores `q (W_k h)` are computed as `(q W_k) h`, and the context `sum p (W_v h)` as
    `W_v (sum p h)`, which takes the key and value products from every token to one per row.
    """

    query: Linear
    keys: Tensor
    """(heads, head size, hidden)"""
    values: Tensor
    """(heads, hidden, head size)"""
    values_bias: Tensor
    out: Linear
    feed_forward: FloatFeedForward
    attention_norm: Norm
    output_norm: Norm
    pooler: Linear
    classifier: Linear

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> FirstTokenHead:
        """From a model for multiple choice."""
        layer = model.base_model.encoder.layer[-1]
        attention = layer.attention.self
        shape = (attention.num_attention_heads, attention.attention_head_size, -1)
        scale = 1 / math.sqrt(attention.attention_head_size)

        def take(part: Any, scale: float = 1) -> Linear:
            return float_linear((part.weight * scale).to(dtype), (part.bias * scale).to(dtype))

        return cls(
            query=take(attention.query, scale),
            # A key's bias adds the same to all scores of a query, which the softmax takes away again.
            keys=attention.key.weight.view(shape).to(dtype).contiguous(),
            values=attention.value.weight.view(shape).transpose(1, 2).to(dtype).contiguous(),
            values_bias=attention.value.bias.to(dtype),
            out=take(layer.attention.output.dense),
            feed_forward=FloatFeedForward(take(layer.intermediate.dense), take(layer.output.dense)),
            attention_norm=Norm.of(layer.attention.output.LayerNorm, dtype),
            output_norm=Norm.of(layer.output.LayerNorm, dtype),
            pooler=take(model.base_model.pooler.dense),
            classifier=take(model.classifier),
        )

    def __call__(self, h: Tensor, packing: Packing) -> Tensor:
        """Logits, float32, (rows,)."""
        heads, size, hidden = self.keys.shape
        first = h.index_select(0, packing.starts).to(self.keys.dtype)
        query = self.query(first).view(-1, heads, size).transpose(0, 1)
        asked = torch.bmm(query, self.keys).transpose(0, 1).float()
        gathered = torch.zeros_like(asked, memory_format=torch.contiguous_format)
        row = 0
        for block in packing.blocks:
            rows = slice(row, row + block.rows)
            states = h[block.tokens].view(block.rows, block.length, hidden).float()
            shares = torch.softmax(torch.bmm(asked[rows], states.transpose(1, 2)), -1)
            torch.bmm(shares, states, out=gathered[rows])
            row += block.rows
        weighted = gathered.to(first.dtype).transpose(0, 1)
        context = torch.bmm(weighted, self.values).transpose(0, 1).reshape(-1, hidden)
        x = self.attention_norm(self.out(context + self.values_bias, first))
        x = self.output_norm(self.feed_forward(x))
        return self.classifier(torch.tanh(self.pooler(x))).float().view(-1)[:row]


@dataclass(frozen=True)
class PoolingHead:
    """A vector per row from all of its tokens' states."""

    pooling: Pooling

    def __call__(self, h: Tensor, packing: Packing) -> Tensor:
        """float32, (rows, hidden)."""
        hidden = h.shape[1]
        return torch.cat([self.pooling(h[b.tokens].view(b.rows, b.length, hidden)) for b in packing.blocks])
