"""Cheaper training on CPU: bf16 work with fp32 master weights, and dropout without fresh random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUERY_PROJECTIONS = ("query", "q_lin")
"""By one of these a layer is known as self-attention, whose kernel draws its own dropout."""


class MasterWeights:
    """fp32 copies of a model's trainable parameters; the model itself computes in bf16.

    The optimizer sees only the copies, so that small updates are not rounded away, and no cast is left in the forward
    pass (Micikevicius et al. 2018, arXiv:1710.03740).
    """

    def __init__(self, model: nn.Module) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.weights = [p.detach().float().requires_grad_() for _, p in trained]
        self._working = [p for _, p in trained]
        model.bfloat16()

    def take_gradients(self) -> None:
        """Move the model's gradients to the fp32 copies."""
        for working, master in zip(self._working, self.weights, strict=True):
            master.grad = working.grad.float() if working.grad is not None else None
            working.grad = None

    def publish(self) -> None:
        """Round the fp32 copies into the model."""
        torch._foreach_copy_([p.data for p in self._working], [w.data for w in self.weights])

    def state(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in zip(self.names, self.weights, strict=True)}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.data.copy_(state[name])
        self.publish()


class PooledDropout(nn.Module):
    """Dropout whose masks are random slices of one pool; fresh ones take a seventh of a training step on CPU."""

    POOL = 1 << 23

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        """The share of values set to zero, under the name that nn.Dropout gives it."""
        self._pool: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return states
        count = states.numel()
        if self._pool is None or self._pool.numel() < 2 * count:
            # A generator of its own, so that a run that goes on from a checkpoint draws the same slices.
            kept = torch.rand(max(2 * count, self.POOL), generator=torch.Generator().manual_seed(0)) >= self.p
            self._pool = kept.to(states.dtype) / (1 - self.p)
        start = int(torch.randint(self._pool.numel() - count + 1, ()))
        return states * self._pool[start : start + count].view(states.shape)


def cheapen_dropout(model: nn.Module) -> None:
    """Replace every Dropout on hidden states by one PooledDropout for each share, and take attention's own away."""
    pooled: dict[float, PooledDropout] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, nn.Dropout):
                continue
            if any(hasattr(module, projection) for projection in QUERY_PROJECTIONS):
                child.p = 0.0
            else:
                setattr(module, name, pooled.setdefault(child.p, PooledDropout(child.p)))
