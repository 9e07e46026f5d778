"""An embedding model for runtimes that know nothing of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.portable import Portable
from marctl_handlers.tasks.embedding.modules import read_pooling
from marctl_handlers.tasks.embedding.schema import EmbeddingSettings, Question
from marctl_handlers.tasks.embedding.vectors import distance
from marctl_handlers.text.portable import Rows, fast_tokenizer, inputs_of, with_limit

SNIPPET = """\
vectors = run(["People use a knife to cut bread.", "There is a light rain today."])
print(vectors.shape, vectors @ vectors.T)
"""


def portable(folder: Path, hub_class: str, settings: EmbeddingSettings) -> Portable:
    """From a `save_pretrained` folder, with the files that sentence-transformers puts beside it. Raises LoadError."""
    tokenizer, pooling = fast_tokenizer(folder), read_pooling(folder, settings)
    length = "scaled to unit length, so that a dot product is the cosine" if pooling.normalize else "of any length"
    return Portable(
        module=Rows(folder, hub_class, pooling),
        inputs=inputs_of(tokenizer),
        output="embeddings",
        tokenizer=with_limit(tokenizer, settings.max_tokens, pairs=False),
        rows=texts,
        answer=answer,
        compare=compare,
        unit="share of the vector's length",
        description={
            "row": "one for each text; one that is too long loses its end",
            "meaning": f"a vector for each row, {length}; pooling ({pooling.mode}) is part of the model",
            "max_tokens": settings.max_tokens,
        },
        snippet=SNIPPET,
    )


def texts(question: Question) -> list[str]:
    return [question.input_text]


def answer(vectors: NDArray[np.float32]) -> dict[str, Any]:
    return {"embedding": vectors[0].tolist()}


def compare(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[None, float]:
    """How far the vector is from the expected one, in lengths of that."""
    return None, distance(wanted["embedding"], given["embedding"])
