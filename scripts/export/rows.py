"""Questions as arrays that every engine takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.portable import Portable

Feeds = Mapping[str, NDArray[np.int64]]
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Of a model's input, the attribute of an encoded row in the library tokenizers."""


class TooLong(Exception):
    """The part of a row that must be kept whole is longer than a row."""


def feeds_of(portable: Portable, question: Any) -> Feeds:
    """One question's rows: each input int64, (rows, tokens). Raises TooLong."""
    try:
        encoded = portable.tokenizer.encode_batch(list(portable.rows(question)))
    except Exception as err:  # tokenizers has no type of its own
        raise TooLong(str(err)) from err
    return {name: np.array([getattr(row, FIELDS[name]) for row in encoded], np.int64) for name in portable.inputs}
