"""Questions, answers and settings of the embedding task."""

from __future__ import annotations

from typing import Annotated

import msgspec

from marctl_handlers.core.errors import Invalid
from marctl_handlers.text.settings import PoolingMode, TextSettings

LONGEST_TEXT = 1_024
"""Characters."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TEXT)]


class EmbeddingSettings(TextSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`pooling` and `normalize` are read from the model's folder, as sentence-transformers writes it, if left out."""

    model_name: str | None = None
    """What answers give as their `model`, such as the name of the model on its hub; if left out, the served model's."""
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    """Whether vectors are scaled to unit length."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text to embed."""

    input_text: Text


class Vector(msgspec.Struct, frozen=True, array_like=True):
    """What the model made of one text. `data`: float32, little-endian, which takes half the room of a list."""

    data: bytes
    tokens: int
    """That the model read, special ones included."""
    truncated: bool


class Answer(msgspec.Struct, frozen=True):
    """`embedding` has seven decimals; `truncated`: the model saw only the text's beginning."""

    prediction_id: str
    model: str
    model_version: str
    embedding: list[float]
    tokens: int
    truncated: bool
    latency_ms: float


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body: one text, or several."""

    input_text: Text | list[Text]


class Answers(msgspec.Struct, frozen=True):
    """The answer to several texts: an embedding for each, in order."""

    prediction_id: str
    """Of the request; the one of a text is this, a colon, and its place, counted from 0."""
    model: str
    model_version: str
    embeddings: list[list[float]]
    tokens: list[int]
    truncated: list[bool]
    latency_ms: float


def refuse_blank(text: str, path: str) -> None:
    """Raise Invalid for a text of white space alone."""
    if not text or text.isspace():
        raise Invalid(f"the text is blank; expected at least one visible character - at `{path}`")
