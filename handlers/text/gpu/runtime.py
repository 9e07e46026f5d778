"""The way of a batch's rows through a GPU: one copy there for each pass, one copy back, nothing waited for between."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marctl_handlers.core.devices import is_out_of_memory, smaller
from marctl_handlers.text.gpu.batch import LARGEST_TOKENS, SHAPES, lay_out, passes
from marctl_handlers.text.gpu.graphs import Graphs
from marctl_handlers.text.gpu.model import GpuBert
from marctl_handlers.text.runtime import warm_up
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import Row, RowEncoder

log = logging.getLogger(__name__)
ROWS_PER_PASS = SHAPES[-1].rows
WARM_UP_LENGTHS = 4
"""Row lengths tried at load, evenly spread up to the limit."""


class GpuRuntime:
    """Computes rows with a GpuBert. On a processor, too, by the same steps, so that they can be tested there."""

    def __init__(self, bert: GpuBert, encoder: RowEncoder, settings: TextSettings, *, graphs: bool = True) -> None:
        """Raises LoadError if the model has too few positions."""
        bert.refuse_longer(settings.max_tokens)
        self.bert = bert
        self.rows_per_pass = min(settings.rows_per_pass or ROWS_PER_PASS, ROWS_PER_PASS)
        self.tokens_per_pass = max(LARGEST_TOKENS, settings.max_tokens)
        self.max_tokens = settings.max_tokens
        self.pad_id = encoder.pad_id
        self.on_gpu = bert.device.type == "cuda"
        self._records = graphs and self.on_gpu
        self._graphs = Graphs(bert.compute, bert.device)
        name = torch.cuda.get_device_name(bert.device) if self.on_gpu else bert.device.type
        self.runtime = f"torch {torch.__version__} variable-length {bert.dtype} {name}"

    def run(self, rows: Sequence[Row], deadline: float) -> list[Any]:
        """A value per row, in order; None where the deadline (time.monotonic seconds) came first."""
        queued: list[Tensor] = []
        with torch.inference_mode():
            for number, part in enumerate(passes(rows, self.tokens_per_pass, self.rows_per_pass)):
                if number and time.monotonic() > deadline:
                    break
                queued += self._queue(part)
            values: list[Any] = torch.cat(queued).tolist() if queued else []
        return values + [None] * (len(rows) - len(values))

    def _queue(self, rows: Sequence[Row]) -> list[Tensor]:
        """Values of one pass, or of several smaller ones if it needs more memory than there is."""
        try:
            packed, shape = lay_out(rows, *self.bert.table, pinned=self.on_gpu)
            return [self._graphs.run(packed, shape)[: len(rows)]]
        except (RuntimeError, MemoryError) as err:
            if len(rows) == 1 or not is_out_of_memory(err):
                raise
            parts = smaller(rows, err)
        self._shrink(sum(len(row.ids) for row in rows) // 2)
        return [values for part in parts for values in self._queue(part)]

    def _shrink(self, tokens: int) -> None:
        """Passes stay smaller from now on: the next batch would need as much."""
        self.tokens_per_pass = max(min(self.tokens_per_pass, tokens), self.max_tokens)
        log.warning("out of GPU memory: passes have at most %d tokens from now on", self.tokens_per_pass)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Some passes, short and long, single and full, and then the graphs."""
        warm_up(self, self.max_tokens, WARM_UP_LENGTHS, self.rows_per_pass, self.pad_id, self.tokens_per_pass)
        if self._records:
            self._graphs.record(shape for shape in SHAPES if shape.tokens <= self.tokens_per_pass)
