"""From the states of a row's tokens to one vector, as sentence-transformers' modules Pooling and Normalize do it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from marctl_handlers.text.settings import PoolingMode


@dataclass(frozen=True, slots=True)
class Pooling:
    """`mean` and `max` are over all tokens of a row, special ones included; `cls` is its first token."""

    mode: PoolingMode
    normalize: bool
    """To unit length, so that a dot product is the cosine."""

    def __call__(self, states: Tensor) -> Tensor:
        """states: (rows, tokens, hidden), without padding. Result: float32, (rows, hidden)."""
        if self.mode == "cls":
            return self.scaled(states[:, 0].float())
        return self.scaled(states.float().mean(1) if self.mode == "mean" else states.amax(1).float())

    def padded(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """The same where rows are filled up at their end; mask: (rows, tokens), 1 on real tokens, None if all are."""
        if mask is None or self.mode == "cls":
            return self(states)
        real = mask.unsqueeze(-1).bool()
        if self.mode == "max":
            return self.scaled(states.masked_fill(~real, float("-inf")).amax(1).float())
        return self.scaled(states.float().masked_fill(~real, 0.0).sum(1) / real.sum(1))

    def scaled(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=1) if self.normalize else vectors
