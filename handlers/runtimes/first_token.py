"""Last encoder layer computed for the first token alone, for models whose head reads nothing else.

A multiple-choice head of the BERT family pools the first token, so the other tokens' outputs of the last layer are
thrown away. Their keys and values still matter; their queries, attention output and feed-forward do not. Leaving
them out is exact and saves 10 of the 12 parts of that layer's matrix work.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

POOLED_FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
"""model_type -> attribute that holds the encoder, for models built of BertLayer-shaped layers with a first-token pooler."""


class FirstTokenLayer(nn.Module):
    """Wraps one BertLayer; its output is (rows, 1, hidden) in place of (rows, tokens, hidden)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.train(layer.training)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
        """hidden_states: (rows, tokens, hidden); attention_mask: as transformers makes it, (rows, 1, tokens, tokens)."""
        layer: Any = self.layer
        own = layer.attention.self
        first = hidden_states[:, :1]
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, :1]

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (own.num_attention_heads, own.attention_head_size)).transpose(1, 2)

        context = scaled_dot_product_attention(
            heads(own.query(first)),
            heads(own.key(hidden_states)),
            heads(own.value(hidden_states)),
            attn_mask=attention_mask,
            dropout_p=own.dropout.p if self.training else 0.0,
        )
        attended: Tensor = layer.attention.output(context.transpose(1, 2).flatten(2), first)
        output: Tensor = layer.output(layer.intermediate(attended), attended)
        return output


def use_first_token_only(model: Any) -> bool:
    """Swap the last layer of a known model for its first-token form; False, and no change, for any other model."""
    config = model.config
    family = POOLED_FAMILIES.get(config.model_type)
    if family is None or getattr(config, "_attn_implementation", "") != "sdpa" or getattr(config, "is_decoder", False):
        return False
    layers = getattr(model, family).encoder.layer
    layers[-1] = FirstTokenLayer(layers[-1])
    return True


