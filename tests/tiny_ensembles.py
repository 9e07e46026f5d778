"""Recipes of two tiny models, and of an ensemble of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from marctl.build.adopt import adopt
from marctl_handlers.tasks.multiple_choice.reference import plain_answers

REQUEST = {"question": "What do people use to cut bread?", "choices": ["a knife", "a pillow", "a cloud"]}
MEMBERS: list[dict[str, Any]] = [{"version": "quiz/1.0", "weight": 0.3}, {"version": "quiz/2.0", "weight": 0.7}]


def write_recipes(folder: Path, tiny_model: Callable[[str], Path], **changes: Any) -> Path:
    """Two versions and an ensemble of them; returns the ensemble's folder. Its sample expects what the weighted mean
    of plain transformers' probabilities says."""
    mean = [0.0, 0.0, 0.0]
    for (version, kind), member in zip((("1.0", "bert"), ("2.0", "roberta")), MEMBERS, strict=True):
        adopt(tiny_model(kind), "quiz", version, folder, precision="float32")
        [plain] = plain_answers(tiny_model(kind), [REQUEST], 126)
        mean = [total + float(member["weight"]) * p for total, p in zip(mean, plain["probabilities"], strict=True)]
    expected = {"prediction": mean.index(max(mean)), "probabilities": mean}
    return write_ensemble(
        folder / "quiz" / "3.0", **{"samples": [{"request": REQUEST, "expected": expected}], **changes}
    )


def write_ensemble(folder: Path, **changes: Any) -> Path:
    sample = {"request": REQUEST, "expected": {"prediction": 0}}
    content = {"task": "ensemble", "description": "both", "members": MEMBERS, "samples": [sample]} | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(content))
    return folder
