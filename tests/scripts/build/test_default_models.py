"""The models that come with the repository: small, whole, and better than guessing on questions they never saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marctl.build.build import build
from marctl.build.recipe import read_version
from marctl.build.weights import load_weights
from marctl.train.calibrate import scores_of
from marctl.train.evaluate import evaluate, open_archive, read_rows
from marctl_handlers.core.calibration import Temperature, softmax
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.reference import plain_probabilities
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice

PROJECT = Path(__file__).parents[3]
STORE = PROJECT / "model_store"
QUESTIONS = PROJECT / "tests" / "data" / "common_sense" / "dev.jsonl"
BOUND = {"1.0": 0.15, "2.0": 0.12}
"""Largest difference of a probability from float32, in 8-bit integers."""
COMMITTED_BYTES = 30_000_000
FLOOR = {
    "1.0": {"commonsenseqa": 20.6, "ecare": 55.9, "comve_explanation": 66.7, "comve_validation": 73.2, "codah": 33.8},
    "2.0": {"commonsenseqa": 43.6, "ecare": 71.1, "comve_explanation": 82.9, "comve_validation": 82.9, "codah": 55.2},
}
"""Dev accuracy in % of a plain two-epoch fine-tune of as many layers: what training must beat to be worth keeping."""


@pytest.fixture(scope="module", params=["1.0", "2.0"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Pipeline]]:
    """A version's name and its pipeline, out of its archive."""
    version = request.param
    path, _ = build(read_version(STORE / "mcqa" / version), STORE / "archives")
    with open_archive(path) as pipeline:
        yield version, pipeline


def test_small_enough_to_live_in_git() -> None:
    files = [path for path in (STORE / "mcqa").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < COMMITTED_BYTES


def beats_the_floor(version: str) -> dict[str, bool]:
    recorded = read_version(STORE / "mcqa" / version).metadata["accuracy"]["dev"]
    return {name: 100 * recorded[name]["accuracy"] > floor for name, floor in FLOOR[version].items()}


def test_recorded_accuracy_of_the_small_version_is_above_the_floor_on_every_set() -> None:
    assert all(beats_the_floor("1.0").values())


def test_recorded_accuracy_of_the_large_version_is_above_the_floor_on_every_set() -> None:
    assert all(beats_the_floor("2.0").values())


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_confidence_was_right_on_held_out_rows(version: str) -> None:
    held_out = read_version(STORE / "mcqa" / version).metadata["calibration"]["held_out"]
    assert held_out["all"]["ece"] <= 0.03
    assert all(found["ece"] <= 0.05 for found in held_out.values() if found["rows"] >= 900)


def test_answers_without_calibration_equal_plain_transformers_within_the_bound_of_the_precision(
    served: tuple[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, pipeline = served
    monkeypatch.setattr(pipeline.task, "calibration", None)
    model, tokenizer = load_weights(read_version(STORE / "mcqa" / version))
    questions = [row.question for row in read_rows(QUESTIONS, MultipleChoice)]
    for question, answer in zip(questions, pipeline.predict(questions), strict=True):
        expected = plain_probabilities(model, tokenizer, msgspec.to_builtins(question), 64)
        given: Any = answer
        assert given.probabilities == pytest.approx(expected, abs=BOUND[version])


def test_the_archive_answers_with_the_calibration_of_its_recipe(served: tuple[str, Pipeline]) -> None:
    version, pipeline = served
    calibration = read_version(STORE / "mcqa" / version).recipe.calibration
    questions = [row.question for row in read_rows(QUESTIONS, MultipleChoice)]
    calibrated = pipeline.outcomes(questions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.task, "calibration", None)
        plain = pipeline.outcomes(questions)
    assert isinstance(calibration, Temperature)
    for before, after in zip(plain, calibrated, strict=True):
        assert after.probabilities == pytest.approx(softmax(scores_of(before.probabilities), calibration), abs=1e-9)
        assert after.index == before.index


def test_answers_questions_it_never_saw_better_than_chance(served: tuple[str, Pipeline]) -> None:
    """At least four standard errors above guessing for 2.0, two for the small 1.0."""
    version, pipeline = served
    score = evaluate(pipeline, QUESTIONS)
    error = math.sqrt(score.chance * (1 - score.chance) / score.questions)
    assert score.accuracy > score.chance + (4 if version == "2.0" else 2) * error
