"""Answers by plain `transformers`, one question at a time: the pipeline's yardstick, no code in common with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def plain_answers(folder: Path, requests: Sequence[Mapping[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
    """`{"prediction", "probabilities"}` for each request, by the model in a `save_pretrained` folder, in float32."""
    from transformers import AutoModelForMultipleChoice, AutoTokenizer

    model = AutoModelForMultipleChoice.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = [plain_probabilities(model, tokenizer, request, max_tokens) for request in requests]
    return [{"prediction": row.index(max(row)), "probabilities": row} for row in found]


@torch.inference_mode()
def plain_probabilities(model: Any, tokenizer: Any, request: Mapping[str, Any], max_tokens: int) -> list[float]:
    """Softmax over the choices' logits, as in the library's own multiple-choice example; a cut keeps the choice."""
    context, choices = request.get("context"), list(request["choices"])
    first = f"{context} {request['question']}" if context else str(request["question"])
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
