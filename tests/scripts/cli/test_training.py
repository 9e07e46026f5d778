from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.recipe import read_version
from marctl.build.recipe_text import with_section
from marctl.cli import main
from marctl.train.evaluate import open_archive
from marctl_handlers.tasks.multiple_choice.schema import Question
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from tests.questions import some_questions
from tests.scripts.train.test_calibration_job import OWN_RECIPE, SENTIMENT
from tests.scripts.train.test_train import write_data


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


def test_eval_tells_how_many_answers_the_precision_changes(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside plain transformers, which computes in float32."""
    monkeypatch.setattr(build_module, "verify", lambda *_: None)
    recipes, store = tmp_path / "recipes", tmp_path / "store"
    version = adopt(tiny_model("bert"), "quiz", "1.0", recipes, precision="bfloat16")
    path, _ = build(version, store)
    questions = some_questions(300, seed=5)
    rows = tmp_path / "set" / "dev.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps(row | {"label": 0}) + "\n" for row in questions))
    with open_archive(path) as pipeline:
        given = pipeline.predict([msgspec.convert(question, Question) for question in questions])
    wanted = MultipleChoice.reference(tiny_model("bert"), questions, version.settings)
    changed = sum(one.prediction != other["prediction"] for one, other in zip(given, wanted, strict=True))
    assert changed > 0
    ask = ["eval", "quiz", "1.0", "--file", rows, "--float32", "--store", store]
    done = marctl(*ask, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["1.0"]["set"]["changed_from_float32"] == round(changed / 300, 4)
    told = [line.split() for line in marctl(*ask).stdout.splitlines() if "all rows" in line]
    assert told[0] == [*["changed", "from", "float32,", "all", "rows", "300"], f"{changed / 3:.2f}", "%"]


def test_eval_in_float32_refuses_a_task_without_a_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "verify", lambda *_: None)
    folder = tmp_path / "recipes" / "moods" / "1.0"
    folder.mkdir(parents=True)
    (folder / "sentiment.py").write_text(SENTIMENT)
    (folder / "model.yaml").write_text(OWN_RECIPE)
    build(read_version(folder), tmp_path)
    (tmp_path / "dev.jsonl").write_text('{"score": 1.0, "label": "good"}\n')
    ask = ["eval", "moods", "1.0", "--file", tmp_path / "dev.jsonl", "--store", tmp_path]
    assert marctl(*ask).exit_code == 0
    done = marctl(*ask, "--float32")
    assert done.exit_code == 1
    assert "--float32: moods 1.0 has no `precision` to compare with float32" in done.stderr


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


def test_training_ends_in_an_archive_and_says_every_step_before(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """From a version that somebody saved, through the refusal and what it advises, to new weights that are built."""
    places = ["--recipes", tmp_path / "recipes", "--store", tmp_path / "store"]
    before = adopt(tiny_model("bert"), "quiz", "1.0", tmp_path / "recipes", precision="float32")
    data = write_data(tmp_path / "data")
    train = ["train", "quiz", "1.0", "--data", data, "--work", tmp_path / "work", *places]
    refused = marctl(*train)
    assert refused.exit_code == 1
    assert "`marctl train quiz 1.0 --init` adds these lines" in refused.stderr
    pasted = yaml.safe_load(refused.stderr.partition("\n\n")[2])
    assert set(pasted) == {"weights", "training"}
    prepared = marctl("train", "quiz", "1.0", "--init", *places)
    assert prepared.exit_code == 0, prepared.stderr
    assert yaml.safe_load(prepared.stdout.split("\n\n")[1]) == pasted
    recipe = before.folder / "model.yaml"
    assert yaml.safe_load(recipe.read_text()).items() >= pasted.items()
    assert "has what training needs" in marctl("train", "quiz", "1.0", "--init", *places).stdout
    recipe.write_text(recipe.read_text().replace("learning_rate: 5.0e-05", "learning_rate: 0.003"))
    trained = marctl(*train)
    assert trained.exit_code == 0, trained.stderr
    assert "build it with: marctl build quiz 1.0\n" in trained.stdout
    [was], [now] = before.recipe.samples, read_version(before.folder).recipe.samples
    assert now.request == was.request
    assert (
        max(abs(a - b) for a, b in zip(now.expected["probabilities"], was.expected["probabilities"], strict=True))
        > 0.03
    )
    built = marctl("build", "quiz", "1.0", *places)
    assert built.exit_code == 0, built.stderr


def test_new_weights_are_refused_until_the_answers_are_recorded_anew(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    places = ["--recipes", tmp_path / "recipes", "--store", tmp_path / "store"]
    version = adopt(tiny_model("bert"), "quiz", "1.0", tmp_path / "recipes", precision="float32")
    recipe = version.folder / "model.yaml"
    right = recipe.read_text()
    answer = version.recipe.samples[0].expected["prediction"]
    other = (answer + 1) % 3
    wrong = with_section(right, "samples", [{"request": version.requests[0], "expected": {"prediction": other}}])
    recipe.write_text("# kept\n" + wrong)
    refused = marctl("build", "quiz", "1.0", *places)
    assert refused.exit_code == 1
    assert "record the answers anew: marctl build quiz 1.0 --record" in refused.stderr
    recorded = marctl("build", "quiz", "1.0", "--record", *places)
    assert recorded.exit_code == 0, recorded.stderr
    assert f"samples[0].prediction: {other} before, {answer} now" in recorded.stderr
    assert recipe.read_text().startswith("# kept\n")
    assert read_version(version.folder).recipe.samples[0].expected == {"prediction": answer}


def test_what_cannot_be_trained_says_so(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    recipes = tmp_path / "recipes"
    adopt(tiny_model("bert"), "vectors", "1.0", recipes, task="embedding", pooling="mean", normalize=True)
    for option in (["--init"], ["--data", tmp_path]):
        done = marctl("train", "vectors", "1.0", *option, "--recipes", recipes)
        assert done.exit_code == 1
        assert "task embedding is trained by other means" in done.stderr
