"""Padded forward passes of any model, on any device: short rows together, long rows together, little padding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marctl_handlers.text.first_token import use_first_token_only
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.runtime import warm_up
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import Row, RowEncoder

ROWS_PER_PASS = {"cpu": 16, "cuda": 256}
"""If the version names none: on a processor few, so that rows of one pass are alike in length."""
WARM_UP_LENGTHS = 16
"""Row lengths tried at load, evenly spread up to the limit."""


class TorchRuntime:
    """Computes rows with any Hugging Face model: one for multiple choice, or with `pooling` one without a head."""

    def __init__(
        self, model: Any, encoder: RowEncoder, settings: TextSettings, device: str, pooling: Pooling | None = None
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.device = torch.device(device)
        self.rows_per_pass = settings.rows_per_pass or ROWS_PER_PASS[self.device.type]
        self.max_tokens = settings.max_tokens
        self.pad_id = encoder.pad_id
        self.has_type_ids = encoder.template.has_type_ids
        self.second_type = encoder.template.second_type
        capability = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(device)
        self.runtime = f"torch {torch.__version__} {model.dtype} {self.device.type} {capability}"

    @classmethod
    def of(
        cls, model: Any, encoder: RowEncoder, settings: TextSettings, device: str, pooling: Pooling | None = None
    ) -> TorchRuntime:
        """A model as `load_model` gives it."""
        model.to(device)
        if pooling is None:
            use_first_token_only(model)
        return cls(model, encoder, settings, device, pooling)

    def run(self, rows: Sequence[Row], deadline: float) -> list[Any]:
        """A value per row, in order; None where the deadline (time.monotonic seconds) came first."""
        found: list[Any] = [None] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        pending: list[tuple[list[int], Tensor]] = []
        with torch.inference_mode():
            for start in range(0, len(rows), self.rows_per_pass):
                if start and time.monotonic() > deadline:
                    break
                places = by_length[start : start + self.rows_per_pass]
                pending.append((places, self._forward([rows[i] for i in places])))
            for places, values in pending:
                for place, value in zip(places, values.tolist(), strict=True):
                    found[place] = value
        return found

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        """float32: logits, (rows,), or vectors, (rows, hidden)."""
        longest = max(len(row.ids) for row in rows)
        ids = [row.ids + [self.pad_id] * (longest - len(row.ids)) for row in rows]
        inputs = {"input_ids": self._tensor(ids)}
        if any(len(row.ids) < longest for row in rows):
            mask = [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows]
            inputs["attention_mask"] = self._tensor(mask)
        if self.has_type_ids:
            types = [
                [0] * row.second_at
                + [self.second_type] * (len(row.ids) - row.second_at)
                + [0] * (longest - len(row.ids))
                for row in rows
            ]
            inputs["token_type_ids"] = self._tensor(types)
        if self.pooling is not None:
            return self.pooling.padded(self.model(**inputs).last_hidden_state, inputs.get("attention_mask"))
        # A model for multiple choice takes rows by question and choice.
        logits: Tensor = self.model(**{name: value.unsqueeze(1) for name, value in inputs.items()}).logits
        return logits.float().view(-1)

    def _tensor(self, values: list[list[int]]) -> Tensor:
        """int64, (rows, tokens); the way to a GPU is not waited for."""
        tensor = torch.tensor(values)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def warm_up(self) -> None:
        """One pass over each of a spread of lengths, full and single, to choose kernels and get memory."""
        warm_up(self, self.max_tokens, WARM_UP_LENGTHS, self.rows_per_pass, self.pad_id)
