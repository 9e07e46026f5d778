"""Small versions for a shared worker: a linear model of a task of its own, built once and written in any number."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loadtest.shared.archives import Files, read_files, write_version
from marctl.build.build import build
from marctl.build.recipe import read_version

SCORES = """from __future__ import annotations
import os
import time

import msgspec
import numpy as np
from marctl_handlers import Task


class Row(msgspec.Struct):
    values: list[float]
    action: str = ""


class Score(msgspec.Struct):
    score: float


class Scores(Task[Row, Score]):
    libraries = ("numpy",)

    def load(self, folder):
        self.weights = np.load(folder / "weights.npy")

    def predict(self, questions, deadline):
        for question in questions:
            if question.action == "exit":
                os._exit(1)
            if question.action == "fail":
                raise ValueError("as it was told to")
            if question.action.startswith("sleep"):
                time.sleep(float(question.action.split()[1]))
        rows = np.array([question.values for question in questions])
        return [Score(round(float(score), 6)) for score in rows @ self.weights[: rows.shape[1]]]
"""
ROW = [1.0, 2.0]


def weights_of(number: int, megabytes: float = 0.01) -> bytes:
    """A file of weights whose score for ROW is 3 times the number."""
    out = io.BytesIO()
    np.save(out, np.full(round(megabytes * (1 << 17)), float(number)))
    return out.getvalue()


def base_archive(folder: Path, **recipe: Any) -> Files:
    """The files of an archive of the task, for number 1."""
    place = folder / "recipes" / "base" / "1.0"
    place.mkdir(parents=True)
    (folder / "scores.py").write_text(SCORES)
    (folder / "weights").mkdir()
    (folder / "weights" / "weights.npy").write_bytes(weights_of(1))
    content: dict[str, Any] = {
        "task": "../../../scores.py",
        "description": "a test",
        "weights": {"directory": "../../../weights"},
        "workers": "shared",
        "samples": [{"request": {"values": ROW}, "expected": {"score": 3.0}}],
        **recipe,
    }
    (place / "model.yaml").write_text(yaml.safe_dump(content))
    path, _ = build(read_version(place), folder / "built")
    return read_files(path)


def write_number(
    files: Files,
    store: Path,
    model: str,
    version: str,
    number: int,
    megabytes: float = 0.01,
    expected: float | None = None,
) -> Path:
    """A version whose score for ROW is 3 times the number; `expected`: what its sample says instead."""
    sample = {"request": {"values": ROW}, "expected": {"score": 3.0 * number if expected is None else expected}}

    def change(_: Files) -> Mapping[str, bytes]:
        return {
            "model/weights.npy": weights_of(number, megabytes),
            "samples.json": json.dumps([sample]).encode(),
        }

    return write_version(files, store, model, version, change)
