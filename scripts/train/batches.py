"""Training steps: questions of one choice count and alike in length, so that little of a step is padding."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marctl_handlers.text.tokenization import PairEncoder, Row

NO_LABEL = -100
"""What torch.nn.functional.cross_entropy leaves out."""


@dataclass(frozen=True)
class Example:
    """One tokenized question: a row per choice, and the index of the right one, None where only a teacher knows it."""

    rows: list[Row]
    label: int | None
    index: int
    """Position in the training set: where a teacher's logits for it are kept."""

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)


@dataclass(frozen=True)
class Step:
    """One optimizer step. All int64; ids, mask and types: (questions, choices, tokens); labels, index: (questions,).

    The label of a question without one is NO_LABEL.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    index: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], pad_id: int) -> Step:
        shape = (len(examples), len(examples[0].rows), max(example.longest for example in examples))
        ids = torch.full(shape, pad_id)
        mask = torch.zeros(shape, dtype=torch.long)
        types = torch.zeros(shape, dtype=torch.long)
        for i, example in enumerate(examples):
            for j, row in enumerate(example.rows):
                length = len(row.ids)
                ids[i, j, :length] = torch.tensor(row.ids)
                mask[i, j, :length] = 1
                types[i, j, row.second_at : length] = 1
        labels = torch.tensor([NO_LABEL if example.label is None else example.label for example in examples])
        return cls(ids, mask, types, labels, torch.tensor([example.index for example in examples]))

    def masked(self, share: float, mask_id: int, special: Tensor) -> Step:
        """Half of the questions with `share` of their tokens replaced, but for the special ones."""
        chosen = torch.rand(len(self.input_ids), 1, 1) < 0.5
        hit = chosen & (torch.rand(self.input_ids.shape) < share) & ~torch.isin(self.input_ids, special)
        return replace(self, input_ids=self.input_ids.masked_fill(hit, mask_id))

    def inputs(self, has_type_ids: bool) -> dict[str, Tensor]:
        """The model's keyword arguments."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs | {"token_type_ids": self.token_type_ids} if has_type_ids else inputs


Pairs = Sequence[tuple[str, str]]
"""The first and second text of each row."""


def tokenize(encoder: PairEncoder, questions: Sequence[tuple[Pairs, int]], first_index: int = 0) -> list[Example]:
    """questions: a question's pairs, and which of them is right."""
    rows = iter(encoder.encode([pair for pairs, _ in questions for pair in pairs]))
    return [
        Example([next(rows) for _ in pairs], label, index)
        for index, (pairs, label) in enumerate(questions, first_index)
    ]


def epoch_order(examples: Sequence[Example], questions_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Example positions of every step of one epoch; the same for the same seed and epoch."""
    dice = random.Random(f"{seed}/{epoch}")
    by_choices: dict[int, list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        by_choices[len(example.rows)].append(position)
    steps = []
    for positions in by_choices.values():
        dice.shuffle(positions)
        positions.sort(key=lambda p: examples[p].longest + dice.random() * 4)
        steps += [positions[i : i + questions_per_step] for i in range(0, len(positions), questions_per_step)]
    dice.shuffle(steps)
    return steps
