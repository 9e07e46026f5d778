"""Vectors by plain `transformers`, one text at a time: the pipeline's yardstick, no computation in common with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from marctl_handlers.text.pooling import Pooling


def plain_answers(
    folder: Path, requests: Sequence[Mapping[str, Any]], pooling: Pooling, max_tokens: int
) -> list[dict[str, Any]]:
    """`{"embedding"}` for each request, by the model in a `save_pretrained` folder, in float32."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [
        {"embedding": plain_vector(model, tokenizer, str(request["input_text"]), pooling, max_tokens)}
        for request in requests
    ]


@torch.inference_mode()
def plain_vector(model: Any, tokenizer: Any, text: str, pooling: Pooling, max_tokens: int) -> list[float]:
    """As sentence-transformers does it: one row has no padding to leave out."""
    inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
    states = model(**inputs).last_hidden_state[0]
    vector = {"mean": states.mean(0), "cls": states[0], "max": states.max(0).values}[pooling.mode]
    if pooling.normalize:
        vector = vector / vector.norm()
    return list(vector.tolist())
