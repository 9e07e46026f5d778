"""What the models of all text tasks share on their way into another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from marctl_handlers.core.errors import LoadError
from marctl_handlers.text.first_token import use_first_token_only
from marctl_handlers.text.hub import load_model, load_tokenizer
from marctl_handlers.text.pooling import Pooling


class Rows(torch.nn.Module):
    """One row of tokens per text or pair; with `pooling` vectors, (rows, hidden), else a head's scores, (rows,)."""

    def __init__(self, folder: Path, hub_class: str, pooling: Pooling | None = None) -> None:
        """From a `save_pretrained` folder. Raises LoadError."""
        super().__init__()
        self.model = load_model(folder, hub_class, torch.float32)
        self.pooling = pooling
        if pooling is None:
            use_first_token_only(self.model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.pooling is not None:
            return self.pooling.padded(self.model(**inputs).last_hidden_state, attention_mask)
        # A model for multiple choice takes rows by question and choice.
        logits: Tensor = self.model(**{name: value.unsqueeze(1) for name, value in inputs.items()}).logits
        return logits.reshape(-1)


def inputs_of(tokenizer: Any) -> tuple[str, ...]:
    """In the order of `Rows.forward`."""
    known = ("input_ids", "attention_mask", "token_type_ids")
    return tuple(name for name in known if name in tokenizer.model_input_names or name == "attention_mask")


def fast_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises LoadError for one that only Python code can run."""
    tokenizer = load_tokenizer(folder)
    if not getattr(tokenizer, "is_fast", False):
        raise LoadError(
            f"{type(tokenizer).__name__} has no tokenizer.json, so it cannot run elsewhere; save the model with a "
            "fast tokenizer"
        )
    return tokenizer


def with_limit(tokenizer: Any, max_tokens: int, *, pairs: bool) -> Tokenizer:
    """Cuts and pads as the worker does: of a pair the first text loses its beginning, a lone text its end."""
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if pairs:
        own.enable_truncation(max_tokens, strategy="only_first", direction="left")
    else:
        own.enable_truncation(max_tokens)
    own.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=tokenizer.pad_token or "[PAD]")
    return own
