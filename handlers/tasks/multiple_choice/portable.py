"""A multiple-choice model for runtimes that know nothing of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.calibration import Temperature, softmax
from marctl_handlers.core.portable import Portable
from marctl_handlers.tasks.multiple_choice.schema import pairs
from marctl_handlers.text.portable import Rows, fast_tokenizer, inputs_of, with_limit
from marctl_handlers.text.settings import TextSettings

SNIPPET = """\
question, choices = "What do people use to cut bread?", ["a pillow", "a knife", "a cloud"]
scores = run([(question, choice) for choice in choices])  # with a context: (f"{context} {question}", choice)
temperature = about["temperature"]["by_choices"].get(str(len(choices)), about["temperature"]["other"])
shares = np.exp((scores - scores.max()) / temperature)
print(choices[scores.argmax()], shares / shares.sum())
"""


def portable(folder: Path, hub_class: str, settings: TextSettings) -> Portable:
    """From a `save_pretrained` folder. Raises LoadError."""
    tokenizer = fast_tokenizer(folder)
    calibration = settings.calibration
    assert calibration is None or isinstance(calibration, Temperature)
    known = calibration or Temperature()

    def answer(scores: NDArray[np.float32]) -> dict[str, Any]:
        probabilities = softmax(scores.tolist(), calibration)
        return {"prediction": probabilities.index(max(probabilities)), "probabilities": probabilities}

    return Portable(
        module=Rows(folder, hub_class),
        inputs=inputs_of(tokenizer),
        output="scores",
        tokenizer=with_limit(tokenizer, settings.max_tokens, pairs=True),
        rows=pairs,
        answer=answer,
        compare=compare,
        unit="probability",
        description={
            "row": "one for each choice: the pair (context + ' ' + question, choice), or (question, choice) without a "
            "context; a pair that is too long loses the first text's beginning",
            "meaning": "a score for each row; a question's answer is the choice with the highest one, and its "
            "probabilities are softmax(scores / temperature) over its choices",
            "temperature": {
                "by_choices": {str(count): value for count, value in known.by_choices.items()},
                "other": known.temperature,
            },
            "max_tokens": settings.max_tokens,
        },
        snippet=SNIPPET,
    )


def compare(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[bool, float]:
    """Whether the choice is the same, and by how much a probability differs at most."""
    farthest = max(abs(a - b) for a, b in zip(wanted["probabilities"], given["probabilities"], strict=True))
    return wanted["prediction"] == given["prediction"], farthest
