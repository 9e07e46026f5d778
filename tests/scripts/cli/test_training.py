from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.cli import main


def marctl(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_eval_prints_a_table_and_records_the_figures(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "verify", lambda *_: None)
    recipes, store = tmp_path / "recipes", tmp_path / "store"
    version = adopt(tiny_model("bert"), "quiz", "1.0", recipes, precision="float32")
    build(version, store)
    row = json.dumps({"question": "Why?", "choices": ["a", "b"], "label": 0}) + "\n"
    (tmp_path / "data" / "easy").mkdir(parents=True)
    (tmp_path / "data" / "easy" / "dev.jsonl").write_text(row * 10)
    places = ["--recipes", recipes, "--store", store]
    done = marctl("eval", "quiz", "1.0", "--data", tmp_path / "data", "--write", *places)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["easy", "10", "50.0"]
    figures = json.loads(marctl("eval", "quiz", "1.0", "--data", tmp_path / "data", "--json", *places).stdout)
    accuracy = figures["versions"]["1.0"]["easy"]["accuracy"]
    assert accuracy in {0.0, 1.0}
    assert f"accuracy: {accuracy}" in (version.folder / "metadata.yaml").read_text()
    assert f"| easy | 10 | {100 * accuracy:.1f} |" in (version.folder / "MODEL_CARD.md").read_text()


def test_eval_needs_data_or_files() -> None:
    assert marctl("eval", "quiz", "1.0").exit_code == 2


def test_eval_of_an_archive_that_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"question": "Why?", "choices": ["a", "b"], "label": 0}\n')
    done = marctl("eval", "quiz", "1.0", "--file", tmp_path / "dev.jsonl", "--store", tmp_path)
    assert done.exit_code == 1
    assert "marctl build quiz 1.0" in done.stderr


def test_training_without_a_recipe_fails_in_one_line(tmp_path: Path) -> None:
    done = marctl("train", "quiz", "1.0", "--data", tmp_path, "--recipes", tmp_path)
    assert done.exit_code == 1
    assert "expected a recipe" in done.stderr
