"""Forward passes of fixed shapes, recorded once as CUDA graphs and replayed: hundreds of kernels for one launch.

See "CUDA Graphs" in PyTorch's notes on CUDA semantics for what may be recorded, and in which order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marctl_handlers.text.gpu.batch import Shape

log = logging.getLogger(__name__)
Compute = Callable[[Tensor, Shape], Tensor]
RUNS_BEFORE = 2
"""Passes before a recording, in which libraries choose kernels and take memory for themselves."""


@dataclass(frozen=True)
class Recorded:
    """One shape's graph, the tensor that it reads and the one that it writes."""

    graph: torch.cuda.CUDAGraph
    packed: Tensor
    values: Tensor

    def replay(self, packed: Tensor) -> Tensor:
        """Values of their own: the next replay, of this graph or another one, writes over the graph's memory."""
        self.packed.copy_(packed, non_blocking=True)
        self.graph.replay()
        return self.values.clone()


class Graphs:
    """Passes by their shape. What was not recorded is computed kernel by kernel."""

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute = compute
        self._device = device
        self._recorded: dict[Shape, Recorded] = {}

    def run(self, packed: Tensor, shape: Shape) -> Tensor:
        """`packed` as `lay_out` makes it, in the host's memory. Nobody waits for the values."""
        recorded = self._recorded.get(shape)
        if recorded is not None:
            return recorded.replay(packed)
        return self._compute(packed.to(self._device, non_blocking=True), shape)

    def record(self, shapes: Iterable[Shape]) -> None:
        """One graph for each shape, in memory that all of them share, the largest first.

        Where that fails, for want of memory or because a kernel cannot be recorded, passes go on without. Raises what a
        device raises that answers nothing any more: the version does not load then.
        """
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.current_stream(self._device)
        try:
            for shape in sorted(shapes, key=lambda shape: shape.tokens, reverse=True):
                self._recorded[shape] = self._record(shape, pool)
        except RuntimeError as err:
            self._recorded.clear()
            torch.cuda.set_stream(stream)  # which a recording that fails may not have left as it was
            torch.cuda.synchronize(self._device)  # a recording fails with a CUDA error that the context survives, too
            log.warning("CUDA graphs are left out, so that small batches take longer: %s", err)

    def _record(self, shape: Shape, pool: Any) -> Recorded:
        packed = torch.zeros(sum(shape.sizes), dtype=torch.int32, device=self._device)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(RUNS_BEFORE):
                self._compute(packed, shape)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            values = self._compute(packed, shape)
        return Recorded(graph, packed, values)
