"""Answers by plain `transformers`, one question at a time: the handlers' yardstick, no code in common."""

from __future__ import annotations

from typing import Any

import torch

from handlers.tasks.multiple_choice.task import Question


@torch.inference_mode()
def plain_probabilities(model: Any, tokenizer: Any, question: Question, max_tokens: int) -> list[float]:
    """Softmax over the choices' logits, as in the library's own multiple-choice example; a cut keeps the choice."""
    first = f"{question.context} {question.question}" if question.context else question.question
    choices = list(question.choices)
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        inputs = tokenizer(
            [first] * len(choices),
            choices,
            truncation="only_first",
            max_length=max_tokens,
            padding=True,
            return_tensors="pt",
        )
    finally:
        tokenizer.truncation_side = side
    logits = model(**{name: value.unsqueeze(0) for name, value in inputs.items()}).logits
    return list(torch.softmax(logits.float(), -1)[0].tolist())
