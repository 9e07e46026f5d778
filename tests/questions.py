"""Multiple-choice questions for tests, and how near their answers must come to plain transformers'."""

from __future__ import annotations

import random
from typing import Any

from tests.tiny_models import CORPUS

WORDS = " ".join(CORPUS).split()
FLOAT32_BOUND = 1e-5


def some_questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Ragged: 2 to 16 choices, short and long, with and without context."""
    dice = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(low, high)))

    questions = []
    for _ in range(count):
        question: dict[str, Any] = {
            "question": text(1, 12),
            "choices": [text(1, 5) for _ in range(dice.randint(2, 16))],
        }
        if dice.random() < 0.5:
            question["context"] = text(1, 12)
        questions.append(question)
    return questions
