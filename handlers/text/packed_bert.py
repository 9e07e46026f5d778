"""Encoder layers of BERT and RoBERTa models over packed rows, with the work left out that changes nothing.

Two things are exact, up to rounding:

- no padding: rows lie token behind token, and attention runs over blocks of rows of one length;
- the first layer's queries, keys and values depend on token, position and segment alone, so they are computed once for
  what rows share, such as the choices of a question.

What becomes of the tokens' states is a head's matter (handlers/text/packed_heads.py). Layers are those of
transformers/models/bert/modeling_bert.py. Tensors are (tokens, hidden) unless stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.linear import (
    CastLinear,
    FloatFeedForward,
    FloatLinear,
    Int8FeedForward,
    Int8Linear,
    Linear,
    MixedFeedForward,
    Watched,
)
from marctl_handlers.text.packing import Block, Packing
from marctl_handlers.text.ranges import InputRange
from marctl_handlers.text.tokenization import PairTemplate, Row, TextTemplate

MakeLinear = Callable[[Tensor, Tensor], Linear]
"""Of a weight and a bias."""
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")


def can_pack(config: Any) -> bool:
    """Whether a model with this configuration is one that PackedBert computes."""
    return (
        config.model_type in MODEL_TYPES
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in ("absolute", None)
    )


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any, dtype: torch.dtype) -> Norm:
        return cls(norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass
class Layer:
    """An encoder layer of which every token is needed; `qkv` gives queries (scaled), keys and values side by side."""

    qkv: Linear
    out: Linear
    feed_forward: Callable[[Tensor], Tensor]
    attention_norm: Norm
    output_norm: Norm

    def finish(self, context: Tensor, h: Tensor) -> Tensor:
        """From attention's context to the layer's output."""
        h = self.attention_norm(self.out(context, h))
        return self.output_norm(self.feed_forward(h))


class PackedBert:
    """An encoder's weights, laid out for packed rows, and the forward pass over them."""

    def __init__(
        self,
        encoder: Any,
        template: PairTemplate | TextTemplate,
        dtype: torch.dtype,
        n_layers: int,
        linear: MakeLinear = FloatLinear,
    ) -> None:
        """`encoder`: the model without its head, of whose layers the first `n_layers` are computed, all in `dtype`."""
        config: Any = encoder.config
        self.dtype = dtype
        self.heads: int = config.num_attention_heads
        embeddings = encoder.embeddings
        self._uncounted: int | None = None if config.model_type == "bert" else config.pad_token_id
        positions = embeddings.position_embeddings.weight[self._uncounted or 0 :]
        types = embeddings.token_type_embeddings.weight
        second = template.second_type if template.has_type_ids else 0
        self._positions = len(positions)
        self._words = embeddings.word_embeddings.weight.to(dtype)
        self._places = torch.cat([positions + types[0], positions + types[second]]).to(dtype)
        self._norm = Norm.of(embeddings.LayerNorm, dtype)
        self._parts = torch.arange(3 * self.heads).view(3, 1, self.heads, 1)
        """Where queries, keys and values of each head stand in a token's, in heads."""
        self.layers = [self._layer(layer, linear) for layer in encoder.encoder.layer[:n_layers]]

    @property
    def longest(self) -> int:
        """Tokens of the longest row that the position table has room for."""
        return self._positions if self._uncounted is None else self._positions - 1

    def refuse_longer(self, max_tokens: int) -> None:
        """Raise LoadError for a version that allows longer rows than the model has positions for."""
        if max_tokens > self.longest:
            raise LoadError(f"max_tokens is {max_tokens}, but the model has positions for {self.longest} tokens")

    def __call__(self, rows: Sequence[Row]) -> tuple[Tensor, Packing]:
        """Every token's state, (tokens, hidden), and where each row's are; `rows` sorted by length."""
        packing = Packing.of(rows, self._positions, self._uncounted)
        words = self._words.index_select(0, packing.ids)
        h = self._norm(words.add_(self._places.index_select(0, packing.places)))
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(h)
            if number == 0:
                context = self._attend(qkv, packing.blocks, packing.sources)
                h = h.index_select(0, packing.sources)
            else:
                context = self._attend(qkv, packing.blocks)
            h = layer.finish(context, h)
        if not self.layers:
            h = h.index_select(0, packing.sources)
        return h, packing

    def _attend(self, qkv: Tensor, blocks: list[Block], sources: Tensor | None = None) -> Tensor:
        """Every token's context, (tokens, hidden), from its queries, keys and values, (tokens, 3 * hidden).

        With `sources`, token i's are in row sources[i]. Scores are in float32, whose small products need no kernel per
        shape.
        """
        hidden = qkv.shape[1] // 3
        size = hidden // self.heads
        parts = qkv.view(-1, size)
        context = qkv.new_zeros(len(qkv if sources is None else sources), hidden)
        for block in blocks:
            shape = (block.rows, block.length, self.heads, size)
            if sources is None:
                split = qkv[block.tokens].view(block.rows, block.length, 3, self.heads, size).permute(2, 0, 3, 1, 4)
                split = split.reshape(-1, block.length, size)
            else:
                rows = sources[block.tokens].view(1, block.rows, 1, block.length)
                split = parts.index_select(0, (rows * (3 * self.heads) + self._parts).view(-1))
            query, key, value = split.float().view(3, block.rows * self.heads, block.length, size).unbind()
            mixed = torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), -1), value)
            heads_first = mixed.view(block.rows, self.heads, block.length, size)
            context[block.tokens].view(shape).copy_(heads_first.transpose(1, 2))
        return context

    def _layer(self, layer: Any, linear: MakeLinear) -> Layer:
        attention, dtype = layer.attention.self, self.dtype
        scale = 1 / math.sqrt(attention.attention_head_size)
        parts = (attention.query, attention.key, attention.value)
        weights = torch.cat([part.weight * (scale if part is attention.query else 1) for part in parts])
        biases = torch.cat([part.bias * (scale if part is attention.query else 1) for part in parts])

        def take(part: Any) -> Linear:
            return linear(part.weight.to(dtype), part.bias.to(dtype))

        return Layer(
            qkv=linear(weights.to(dtype), biases.to(dtype)),
            out=take(layer.attention.output.dense),
            feed_forward=FloatFeedForward(take(layer.intermediate.dense), take(layer.output.dense)),
            attention_norm=Norm.of(layer.attention.output.LayerNorm, dtype),
            output_norm=Norm.of(layer.output.LayerNorm, dtype),
        )

    def products(self) -> Iterator[tuple[str, FloatLinear]]:
        """The layers' products in floating point, by names of their own: `0.qkv`."""
        for number, layer in enumerate(self.layers):
            feed_forward = layer.feed_forward
            assert isinstance(feed_forward, FloatFeedForward)
            parts = {"qkv": layer.qkv, "out": layer.out, "up": feed_forward.up, "down": feed_forward.down}
            for name, linear in parts.items():
                yield f"{number}.{name}", cast(FloatLinear, linear)

    def learn_ranges(self) -> dict[str, InputRange]:
        """Of every product, for one that was made with `linear=Watched` and has seen samples."""
        return {
            name: InputRange.of(linear.weight, torch.cat(linear.inputs), level=not name.endswith(".down"))
            for name, linear in self.products()
            if isinstance(linear, Watched)
        }

    def quantize(self, ranges: Mapping[str, InputRange], middle: int, otherwise: torch.dtype) -> None:
        """Compute the products that have a range in 8-bit integers, weights in steps up to `middle`, and the others in
        a float type. Raises LoadError for ranges of another model."""
        products = dict(self.products())
        for name, given in ranges.items():
            if name not in products or len(given.levels) != products[name].weight.shape[1]:
                raise LoadError(f"the ranges are of another model: {name} does not fit; run `marctl quantize` again")
        made: dict[str, Int8Linear | CastLinear] = {
            name: Int8Linear(linear, ranges[name], middle) if name in ranges else CastLinear(linear, otherwise)
            for name, linear in products.items()
        }
        for number, layer in enumerate(self.layers):
            layer.qkv, layer.out = made[f"{number}.qkv"], made[f"{number}.out"]
            layer.feed_forward = feed_forward_of(made[f"{number}.up"], made[f"{number}.down"])


def feed_forward_of(up: Int8Linear | CastLinear, down: Int8Linear | CastLinear) -> Callable[[Tensor], Tensor]:
    """With as little as possible between the two products."""
    if isinstance(up, CastLinear):
        return FloatFeedForward(up, down)
    return Int8FeedForward(up, down) if isinstance(down, Int8Linear) else MixedFeedForward(up, down)
