"""An archive of a task that needs no library, for batch jobs: it doubles numbers."""

from __future__ import annotations

from pathlib import Path

import yaml

from marctl.build.build import build
from marctl.build.recipe import read_version

DOUBLING = '''\
import os
import time

import msgspec

from marctl_handlers import Invalid, Task


class Number(msgspec.Struct):
    value: int
    note: str | None = None


class Doubled(msgspec.Struct):
    doubled: int
    digits: list[int]
    parity: str


class Doubling(Task[Number, Doubled]):
    def load(self, folder):
        """Nothing to load."""

    def check(self, question):
        if question.value == 13:
            raise Invalid("13 brings bad luck - at `$.value`")

    def predict(self, questions, deadline):
        time.sleep(len(questions) * PAUSE_S)
        if any(question.note == "deadly" for question in questions):
            os.kill(os.getpid(), 9)
        return [self.doubled(question.value) for question in questions]

    def doubled(self, value):
        if value == 14:
            raise ValueError("it breaks the model")
        return Doubled(2 * value, [int(digit) for digit in str(abs(value))], "odd" if value % 2 else "even")
'''


def doubling_archive(folder: Path, version: str = "1.0", pause_s: float = 0.0) -> Path:
    """Build it; `pause_s`: how long the model takes for a row."""
    recipe = folder / "recipes" / "doubling" / version
    recipe.mkdir(parents=True)
    (recipe / "doubling.py").write_text(DOUBLING.replace("PAUSE_S", repr(pause_s)))
    samples = [{"request": {"value": 21}, "expected": {"doubled": 42}}]
    content = {"task": "./doubling.py", "description": "doubles", "samples": samples, "log": {"share": 1.0}}
    (recipe / "model.yaml").write_text(yaml.safe_dump(content))
    path, _ = build(read_version(recipe), folder / "store", notify=lambda _: None)
    return path
