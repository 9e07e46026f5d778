"""The study of a GPU, tried on a processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loadtest.gpu import answer, load, options, questions, told, verdict


@pytest.fixture
def root(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """What an archive's root holds, as far as `load` reads it."""
    (tmp_path / "model").symlink_to(tiny_model("bert"))
    (tmp_path / "model-config.yaml").write_text("handler: {task: multiple_choice, max_tokens: 64}")
    return tmp_path


@pytest.mark.parametrize("variant", ["graphs", "padded"])
def test_a_worker_answers_its_batches_by_the_variant_that_is_asked_for(variant: str, root: Path) -> None:
    pipeline = load(root, {"device": "cpu", "model": "archive", "variant": variant, "archive": root}, workers=1)
    batches = questions(0, 300)
    first = next(batches)
    assert (len(first), first[0].body != next(batches)[0].body) == (300, True)
    answer(pipeline, first[:8])
    task: Any = pipeline.task
    assert ("variable-length" in task.runtime) == (variant == "graphs")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.mar", "--device", "cpu"], "no archive no.mar"),
        ([__file__, "--device", "cpu", "--models", "gpt"], "no 'gpt'; expected some of archive,bert-base"),
        ([__file__, "--device", f"cuda:{torch.cuda.device_count()}"], "--device cpu tries the command"),
    ],
)
def test_what_cannot_be_measured_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(arguments)
    assert words in capsys.readouterr().err


def test_the_best_in_time_is_held_against_the_aims() -> None:
    fast = told([0.01] * 1000, 128, 10.0, [90.0, 95.0]) | {"model": "archive"}
    late = told([0.2] * 1000, 512, 10.0, [99.0]) | {"model": "archive"}
    assert fast["predictions_per_s"] == 12800
    found = verdict([fast, late], "archive")
    assert (found["best_in_time"], found["fast_enough"], found["busy_enough"]) == (fast, True, True)
    assert verdict([late], "archive")["best_in_time"] is None
    slow = told([0.01] * 100, 8, 10.0, []) | {"model": "archive"}
    assert (verdict([slow], "archive")["fast_enough"], verdict([slow], "archive")["busy_enough"]) == (False, False)
