"""Attention over packed rows, each within itself, without padding: one kernel on a GPU.

`torch.nn.attention.varlen` is PyTorch's own interface to FlashAttention (Dao 2023, arXiv:2307.08691) for rows of unlike
lengths. It has no kernel for processors, where the same is computed row by row: enough to test everything round it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LEAST_CAPABILITY = (8, 0)
"""Of a GPU, from Ampere on: FlashAttention, and products of bfloat16 numbers, which older ones emulate."""
HEAD_STEP, LARGEST_HEAD = 8, 256
"""Sizes of a head that the kernel takes."""


class Attend(Protocol):
    """softmax(q k^T) v for each row; queries are scaled already. Tensors: (tokens, heads, head size).

    `query_bounds`, `key_bounds`: int32, (rows + 1,), where each row begins, and the end of the last one. Tokens outside
    of all rows have no defined context. `longest_query`, `longest_key`: no row is longer.
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_bounds: Tensor,
        key_bounds: Tensor,
        longest_query: int,
        longest_key: int,
    ) -> Tensor: ...


def attention_on(device: torch.device) -> Attend:
    return in_one_kernel if device.type == "cuda" else row_by_row


def in_one_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest_query: int,
    longest_key: int,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # takes 0.8 s, which workers without a GPU need not wait for

    context = varlen_attn(query, key, value, query_bounds, key_bounds, longest_query, longest_key, scale=1.0)
    assert isinstance(context, Tensor)
    return context


def row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest_query: int,
    longest_key: int,
) -> Tensor:
    context = torch.zeros_like(query)
    queries, keys = query_bounds.tolist(), key_bounds.tolist()
    for row in range(len(queries) - 1):
        asked, seen = slice(queries[row], queries[row + 1]), slice(keys[row], keys[row + 1])
        if keys[row] < keys[row + 1]:
            parts = (query[asked].transpose(0, 1), key[seen].transpose(0, 1), value[seen].transpose(0, 1))
            context[asked] = scaled_dot_product_attention(*parts, scale=1.0).transpose(0, 1)
    return context


def can_attend(config: Any, device: torch.device) -> bool:
    """Whether `attention_on(device)` computes a model with this configuration in bfloat16."""
    size = config.hidden_size // config.num_attention_heads
    return size % HEAD_STEP == 0 and size <= LARGEST_HEAD and is_recent(device)


def is_recent(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
