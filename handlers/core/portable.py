"""A version's model as plain tensors in and out, for runtimes that know nothing of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

Text = str | tuple[str, str]
"""What the tokenizer makes one row of: a text, or a pair."""


@dataclass(frozen=True)
class Portable:
    """What `marctl export` writes, and how a question becomes rows and a row's output an answer.

    The rows of several questions may be computed together; a row's output depends on no other row.
    """

    module: torch.nn.Module
    """float32, in eval mode; takes `inputs` by position, gives `output`."""
    inputs: tuple[str, ...]
    """Of input_ids, attention_mask and token_type_ids those that the model takes: int64, (rows, tokens)."""
    output: str
    """Name of the output: float32, (rows,) or (rows, width)."""
    tokenizer: Tokenizer
    """With its limit and its padding set, as it is written to tokenizer.json."""
    rows: Callable[[Any], Sequence[Text]]
    """The texts of a question's rows."""
    answer: Callable[[NDArray[np.float32]], dict[str, Any]]
    """The output of a question's rows -> those fields of the task's answer that depend on the model."""
    compare: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[bool | None, float]]
    """Of an expected answer and another one: whether the choice is the same, None where nothing is chosen; how far the
    numbers are apart, in `unit`."""
    unit: str
    description: Mapping[str, Any]
    """For a reader of model.json: how a row is built and what the output means."""
    snippet: str
    """Python after `run(rows)`, which gives the output of rows: asks one question."""
