"""A tiny model that explains, and requests to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marctl_handlers.core.messages import Request
from marctl_handlers.core.pipeline import Pipeline
from tests.handlers import loading

QUESTION = {
    "context": "There is a light rain today.",
    "question": "What do people use to cut bread?",
    "choices": ["a knife", "a spoon, or a pillow", "orange juice"],
}


def load(
    folder: Path, max_tokens: int = 64, batch_seconds: float = 300.0, calibration: Any = None, **limits: Any
) -> Pipeline:
    return loading.load(
        folder,
        max_tokens=max_tokens,
        rows_per_pass=8,
        batch_seconds=batch_seconds,
        calibration=calibration,
        explanations=limits,
    )


def explain(quiz: Pipeline, *bodies: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The first explanation of each answer, all asked in one batch."""
    return [answer["explanations"][0] for answer in answers(quiz, *bodies, **options)]


def answers(quiz: Pipeline, *bodies: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """All of them must be 200."""
    sent = [json.dumps(body | {"explain": options | body.get("explain", {})}).encode() for body in bodies]
    replies = quiz.answer([Request(body, f"id-{i}", explain=True) for i, body in enumerate(sent)])
    assert {reply.code for reply in replies} == {200}, [reply.body for reply in replies]
    return [json.loads(reply.body) for reply in replies]


def scores(explanation: dict[str, Any]) -> list[float]:
    return [word["score"] for word in explanation["words"]]
