"""The model's forward pass in the form that explanations need: in float32, on cases, with words taken away.

A word is taken away by giving its tokens the baseline's embedding; the model still gets the row's own token ids. That
matters for models that count positions from the ids (RoBERTa, MPNet): a padding token put in a word's place would move
every word behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from marctl_handlers.core.calibration import Temperature
from marctl_handlers.tasks.multiple_choice.explain.cases import SPECIAL, Case, CaseRow
from marctl_handlers.tasks.multiple_choice.explain.request import Target
from marctl_handlers.text.tokenization import PairEncoder


@dataclass(frozen=True, slots=True)
class Inputs:
    """Cases of as many rows each. All tensors: (cases, rows, tokens), padded on the right."""

    ids: Tensor
    baseline_ids: Tensor
    """The same, with the baseline's token in place of all but special tokens and padding."""
    mask: Tensor
    types: Tensor | None

    @property
    def rest(self) -> tuple[Tensor, ...]:
        """What the model gets besides the ids."""
        return (self.mask,) if self.types is None else (self.mask, self.types)


class WordModel:
    """A multiple-choice model whose words can be taken away."""

    def __init__(self, model: Any, encoder: PairEncoder, calibration: Temperature | None = None) -> None:
        self.model = model
        self._calibration = calibration
        self.embedding: nn.Module = model.get_input_embeddings()
        self.device = next(model.parameters()).device
        self._pad_id = encoder.pad_id
        self._template = encoder.template

    def inputs(self, cases: Sequence[Case]) -> Inputs:
        """Tensors for cases of equally many rows."""
        rows = [row for case in cases for row in case.rows]
        baselines = [case.baseline_id for case in cases for _ in case.rows]
        longest = max(len(row.ids) for row in rows)
        shape = (len(cases), len(cases[0].rows), longest)

        def tensor(lists: Sequence[Sequence[int]], fill: int) -> Tensor:
            filled = [[*values, *[fill] * (longest - len(values))] for values in lists]
            return torch.tensor(filled, device=self.device).view(shape)

        absent = [
            [token if word == SPECIAL else baseline for token, word in zip(row.ids, row.words, strict=True)]
            for row, baseline in zip(rows, baselines, strict=True)
        ]
        types = tensor([self._types(row) for row in rows], 0) if self._template.has_type_ids else None
        ids = tensor([row.ids for row in rows], self._pad_id)
        mask = tensor([[1] * len(row.ids) for row in rows], 0)
        return Inputs(ids, tensor(absent, self._pad_id), mask, types)

    def _types(self, row: CaseRow) -> list[int]:
        return [0] * row.second_at + [self._template.second_type] * (len(row.ids) - row.second_at)

    def logits(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """Float32, (cases, rows)."""
        kinds = {} if types is None else {"token_type_ids": types}
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, **kinds).logits
        return logits.float()

    def logits_without(self, inputs: Inputs) -> Tensor:
        """The same, with the baseline's embeddings in place of the words'."""
        return self.logits_showing(inputs.baseline_ids, inputs.ids, *inputs.rest)

    def logits_of_nothing(self, inputs: Inputs) -> Tensor:
        """The same, with zeros in place of the words' embeddings."""
        words = (inputs.ids != inputs.baseline_ids).unsqueeze(-1)

        def clear(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return output.masked_fill(words.view(*output.shape[:-1], 1), 0.0)

        with removed(self.embedding.register_forward_hook(clear)):
            return self.logits(inputs.ids, *inputs.rest)

    def logits_showing(self, shown: Tensor, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """The same, with the embeddings of `shown`, which has the ids' shape."""

        def replace(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return (shown.view(given[0].shape), *given[1:])

        with removed(self.embedding.register_forward_pre_hook(replace)):
            return self.logits(ids, mask, types)

    def target(self, kind: Target, logits: Tensor) -> Tensor:
        """What is explained: (cases,) from logits (cases, rows) whose first row is the explained choice's."""
        if kind == "margin":
            return logits[:, 0] - logits[:, 1]
        if kind == "logit":
            return logits[:, 0]
        temperature = 1.0 if self._calibration is None else self._calibration.of(logits.shape[1])
        return torch.softmax(logits / temperature, -1)[:, 0]


@contextmanager
def removed(handle: RemovableHandle) -> Iterator[None]:
    """Remove a hook at the end of the block, also after an error."""
    try:
        yield
    finally:
        handle.remove()


def fitting(longest: int, tokens_per_pass: int, rows: int = 1) -> int:
    """How many times `rows` rows of this length fit into one pass; at least once."""
    return max(tokens_per_pass // (longest * rows), 1)
