"""From a built version and labelled rows to a recipe that builds again, with other confidence and the same choices."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.recipe import Version, read_version
from marctl.build.recipe_text import recipe_text
from marctl.build.verify import verify
from marctl.cli import main
from marctl.core import files as files_module
from marctl.core.errors import UserError
from marctl.train.calibrate import scores_of
from marctl.train.calibration_job import calibrate, calibrate_trained, write
from marctl.train.evaluate import open_archive
from marctl_handlers.core.calibration import Temperature, softmax
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from tests.questions import some_questions

TRUTH = 0.05
"""Where the tiny model's rows are true: it is far too unsure, so that its calibration is far from none."""

SENTIMENT = """\
import math
from pathlib import Path

import msgspec

from marctl_handlers import Task
from marctl_handlers.core.calibration import softmax

LABELS = ("bad", "good")


class Text(msgspec.Struct):
    score: float


class Sentiment(msgspec.Struct):
    label: str
    shares: list[float]


class SentimentTask(Task[Text, Sentiment]):
    gives_probabilities_of = "choices"

    def load(self, folder):
        pass

    def predict(self, questions, deadline):
        found = [softmax([0.0, q.score], self.calibration) for q in questions]
        return [Sentiment(LABELS[shares[1] > shares[0]], shares) for shares in found]

    def probabilities(self, found):
        return found.shares

    def label_index(self, question, label):
        return LABELS.index(label)
"""
OWN_RECIPE = (
    "task: ./sentiment.py\ndescription: Moods.\nsamples:\n  - {request: {score: 2.0}, expected: {label: good}}\n"
)


@pytest.fixture(scope="module")
def trusting() -> Any:
    """Builds need no verification but in the tests of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "verify", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path], trusting: None) -> Path:
    """Recipe, archive and labelled rows of a tiny BERT, below one folder."""
    root = tmp_path_factory.mktemp("made")
    version = adopt(tiny_model("bert"), "quiz", "1.0", root / "recipes", precision="float32")
    build(version, root / "store")
    questions = some_questions(400, seed=3)
    told = MultipleChoice.reference(tiny_model("bert"), questions, version.settings)
    dice = random.Random(1)
    lines = []
    for question, answer in zip(questions, told, strict=True):
        shares = softmax(scores_of(answer["probabilities"]), Temperature(TRUTH))
        label = dice.choices(range(len(shares)), shares)[0]
        lines.append(json.dumps({**question, "label": label}) + "\n")
    (root / "data" / "drawn").mkdir(parents=True)
    (root / "data" / "drawn" / "dev.jsonl").write_text("".join(lines))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def folder(root: Path) -> Path:
    return root / "recipes" / "quiz" / "1.0"


def run(root: Path) -> Any:
    return calibrate(folder(root), root / "store" / "quiz-1.0.mar", [root / "data" / "drawn" / "dev.jsonl"])


def marctl(root: Path, *arguments: object) -> Result:
    places = ["--recipes", root / "recipes", "--store", root / "store"]
    return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *places)])


def answers(archive: Path, questions: list[dict[str, Any]]) -> list[Any]:
    with open_archive(archive) as pipeline:
        return pipeline.predict([msgspec.convert(question, MultipleChoice.question_type) for question in questions])


def test_confidence_comes_true_and_no_choice_changes(root: Path) -> None:
    before = answers(root / "store" / "quiz-1.0.mar", questions := some_questions(60, seed=9))
    found = run(root)
    version = read_version(folder(root))
    assert version.recipe.calibration == found.learned.calibration == Temperature(pytest.approx(TRUTH, rel=0.3))
    archive, _ = build(version, root / "store")
    after = answers(archive, questions)
    assert [one.prediction for one in after] == [one.prediction for one in before]
    for old, new in zip(before, after, strict=True):
        scores = [
            score / version.recipe.calibration.of(len(old.probabilities)) for score in scores_of(old.probabilities)
        ]
        assert new.probabilities == pytest.approx(softmax(scores), abs=1e-3)


def test_the_archive_is_verified_against_plain_transformers_without_its_calibration(root: Path) -> None:
    """The recorded samples hold the calibrated answer, the reference the model's own: both must be met."""
    before = read_version(folder(root)).recipe.samples[0].expected["probabilities"]
    run(root)
    version = read_version(folder(root))
    now = version.recipe.samples[0].expected["probabilities"]
    assert max(abs(new - old) for new, old in zip(now, before, strict=True)) > 2 * version.recipe.sample_tolerance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "verify", verify)
        build(version, root / "store")


def test_the_rest_of_the_recipe_stays_as_it_was_written(root: Path) -> None:
    path = folder(root) / "model.yaml"
    path.write_text("# Ours.\n" + path.read_text())
    build(read_version(folder(root)), root / "store")
    run(root)
    assert path.read_text().startswith("# Ours.\n")


def test_figures_stand_in_metadata_and_model_card_and_in_a_page(root: Path) -> None:
    page = root / "page.html"
    done = marctl(root, "calibrate", "quiz", "1.0", "--data", root / "data", "--html", page)
    assert done.exit_code == 0, done.stderr
    assert "one temperature" in done.stdout
    known = read_version(folder(root)).metadata["calibration"]
    assert known["files"]["drawn"]["questions"] == 400
    assert known["held_out"]["all"]["ece"] < 0.06 < known["uncalibrated"]["all"]["ece"]
    assert "## Calibration" in (folder(root) / "MODEL_CARD.md").read_text()
    assert page.read_text().count("<svg") == 2
    assert "<script" not in page.read_text()


def test_eval_tells_calibration_and_which_rows_it_was_learned_from(root: Path) -> None:
    page = root / "page.html"
    first = marctl(root, "eval", "quiz", "1.0", "--data", root / "data", "--html", page)
    assert "ECE, all rows" in first.stdout
    assert page.read_text().count("<svg") == 1
    assert "learned from these rows" not in first.stderr
    marctl(root, "calibrate", "quiz", "1.0", "--data", root / "data")
    build(read_version(folder(root)), root / "store")
    second = marctl(root, "eval", "quiz", "1.0", "--data", root / "data", "--json")
    assert "learned from these rows" in second.stderr
    figures = json.loads(second.stdout)["versions"]["1.0"]["drawn"]
    assert figures["ece"] < 0.06
    assert figures["brier"] > 0


def test_rows_of_the_training_split_are_left_out(root: Path) -> None:
    rows = (root / "data" / "drawn" / "dev.jsonl").read_text().splitlines(keepends=True)
    (root / "data" / "drawn" / "train.jsonl").write_text("".join(rows[:50]))
    assert len(run(root).rows) == 350


def test_a_file_that_the_version_was_trained_on_is_refused(root: Path) -> None:
    file = root / "data" / "drawn" / "dev.jsonl"
    metadata = {"training_files": {"drawn": {"sha256": build_module.digest(file), "questions": 400}}}
    (folder(root) / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    build(read_version(folder(root)), root / "store")
    with pytest.raises(UserError, match="was trained on this file"):
        run(root)


def test_a_version_that_is_not_built_or_out_of_date_is_refused(root: Path) -> None:
    path = folder(root) / "model.yaml"
    path.write_text(path.read_text().replace("description: ", "description: really "))
    with pytest.raises(UserError, match=r"older than its recipe or its code; run: marctl build quiz 1\.0"):
        run(root)
    (root / "store" / "quiz-1.0.mar").unlink()
    with pytest.raises(UserError, match=r"not built; run: marctl build quiz 1\.0"):
        run(root)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('{"question": "Why?", "choices": ["a", "b"]}\n' * 200, "dev.jsonl:1: no label"),
        ('{"question": "Why?", "choices": ["a", "b"], "label": 1}\n' * 200, "all 200 rows have the label 1"),
        ('{"question": "Why?", "choices": ["a", "b"], "label": 1}\n' * 20, "20 labelled rows"),
        ('{"text": "I like it", "label": "good"}\n', "dev.jsonl:1: Expected `int`"),
        ("", "no rows in the file"),
    ],
    ids=["no labels", "one label", "few rows", "another task's", "empty"],
)
def test_rows_that_cannot_calibrate_are_refused_and_change_nothing(rows: str, words: str, root: Path) -> None:
    (root / "data" / "drawn" / "dev.jsonl").write_text(rows)
    before = recipe_text(folder(root))
    done = marctl(root, "calibrate", "quiz", "1.0", "--data", root / "data")
    assert done.exit_code == 1
    assert words in done.stderr
    assert recipe_text(folder(root)) == before
    assert not (folder(root) / "metadata.yaml").exists()


def test_a_folder_without_rows_is_told(root: Path) -> None:
    done = marctl(root, "calibrate", "quiz", "1.0", "--data", root / "recipes")
    assert done.exit_code == 1
    assert "no */dev.jsonl below it" in done.stderr


def test_of_two_calibrations_at_once_the_second_is_told_and_the_recipe_is_whole(root: Path) -> None:
    text = recipe_text(folder(root))
    outcomes: list[str] = []

    def one(temperature: float) -> None:
        try:
            write(folder(root), text, Temperature(temperature), None)
            outcomes.append("written")
        except UserError as err:
            outcomes.append(str(err))

    threads = [threading.Thread(target=one, args=(1.5 + i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("written") == 1
    assert sum("changed meanwhile" in outcome for outcome in outcomes) == 5
    assert read_version(folder(root)).recipe.calibration is not None


def test_interrupted_while_it_writes_it_leaves_the_recipe_as_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = recipe_text(folder(root))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files_module, "write_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert recipe_text(folder(root)) == before
    assert {path.name for path in folder(root).iterdir()} == {"model.yaml"}


def test_training_ends_with_a_calibration_of_the_weights_that_it_made(root: Path) -> None:
    write(folder(root), recipe_text(folder(root)), Temperature(7.0), None)
    assert calibrate_trained(folder(root), root / "data", lambda _: None) is not None
    assert read_version(folder(root)).recipe.calibration == Temperature(pytest.approx(TRUTH, rel=0.3))


def test_training_without_held_back_rows_forgets_the_calibration_of_earlier_weights(root: Path) -> None:
    write(folder(root), recipe_text(folder(root)), Temperature(7.0), None)
    notes: list[str] = []
    assert calibrate_trained(folder(root), root / "recipes", notes.append) is None
    assert read_version(folder(root)).recipe.calibration is None
    assert "not calibrated" in notes[-1]


def own_version(root: Path, code: str = SENTIMENT) -> Version:
    place = root / "recipes" / "mood" / "1.0"
    place.mkdir(parents=True)
    (place / "sentiment.py").write_text(code)
    (place / "model.yaml").write_text(OWN_RECIPE)
    dice = random.Random(2)
    scores = [dice.gauss(0, 3) for _ in range(400)]
    labels = ["good" if dice.random() < softmax([0.0, score / 3])[1] else "bad" for score in scores]
    rows = [json.dumps({"score": score, "label": label}) for score, label in zip(scores, labels, strict=True)]
    (root / "moods" / "held").mkdir(parents=True)
    (root / "moods" / "held" / "dev.jsonl").write_text("\n".join(rows))
    return read_version(place)


def test_a_task_of_ones_own_is_calibrated_if_it_declares_its_probabilities(tmp_path: Path, trusting: None) -> None:
    version = own_version(tmp_path)
    build(version, tmp_path / "store")
    done = marctl(tmp_path, "calibrate", "mood", "1.0", "--data", tmp_path / "moods")
    assert done.exit_code == 0, done.stderr
    assert read_version(version.folder).recipe.calibration == Temperature(pytest.approx(3, rel=0.2))


def test_a_task_that_does_not_apply_its_calibration_is_told(tmp_path: Path, trusting: None) -> None:
    version = own_version(tmp_path, SENTIMENT.replace(", self.calibration", ""))
    build(version, tmp_path / "store")
    done = marctl(tmp_path, "calibrate", "mood", "1.0", "--data", tmp_path / "moods")
    assert done.exit_code == 1
    assert "SentimentTask.predict does not apply self.calibration" in done.stderr
    assert recipe_text(version.folder) == OWN_RECIPE


def test_a_task_without_probabilities_is_refused(tmp_path: Path, trusting: None) -> None:
    version = own_version(tmp_path, SENTIMENT.replace('    gives_probabilities_of = "choices"\n', ""))
    build(version, tmp_path / "store")
    done = marctl(tmp_path, "calibrate", "mood", "1.0", "--data", tmp_path / "moods")
    assert "gives no probabilities" in done.stderr
    (version.folder / "model.yaml").write_text(OWN_RECIPE + "calibration: {method: temperature, temperature: 2.0}\n")
    with pytest.raises(UserError, match=r"calibration: task \./sentiment\.py gives no probabilities"):
        read_version(version.folder)


def test_a_method_for_events_is_refused_for_choices(root: Path) -> None:
    path = folder(root) / "model.yaml"
    path.write_text(path.read_text() + "calibration: {method: platt, slope: 1.0, intercept: 0.0}\n")
    with pytest.raises(UserError, match="not for task multiple_choice, which takes temperature"):
        read_version(folder(root))
