"""From labelled rows to a version in 8-bit integers, whose archive carries their ranges."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.reader import read_archive
from marctl.build.recipe import read_version
from marctl.cli import main
from marctl.core.errors import UserError
from marctl.train.evaluate import open_archive
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.text.processor import Processor
from marctl_handlers.text.ranges import RANGES_FILE, read_ranges
from tests.questions import some_questions

fast = pytest.mark.skipif(not Processor.here().int8_middle, reason="this processor has no exact 8-bit products")


@pytest.fixture
def root(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    """A recipe and rows to learn from, of which one is no question of the task."""
    version = adopt(tiny_model("bert"), "quiz", "1.0", tmp_path / "recipes")
    with (version.folder / "model.yaml").open("a") as recipe:
        recipe.write("sample_tolerance: 0.3\n")  # weights of a random model are wide
    rows = [{**question, "label": 0} for question in some_questions(40, seed=3)]
    rows[7]["choices"] = ["", "a knife"]
    folder = tmp_path / "data" / "drawn"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def folder(root: Path) -> Path:
    return root / "recipes" / "quiz" / "1.0"


def quantize(root: Path, *more: str) -> Result:
    arguments = ["quantize", "quiz", "1.0", "--data", str(root / "data"), "--recipes", str(root / "recipes"), *more]
    return CliRunner().invoke(main, arguments)


@fast
def test_the_archive_computes_with_the_ranges_that_were_learned(root: Path) -> None:
    given = quantize(root, "--json")
    assert given.exit_code == 0, given.output
    learned = json.loads(given.stdout)
    recipe = yaml.safe_load((folder(root) / "model.yaml").read_text())
    assert (recipe["precision"], recipe["ranges"]) == ("int8", RANGES_FILE)
    assert read_version(folder(root)).metadata["ranges"]["questions"] == 39
    kept = read_ranges(folder(root) / RANGES_FILE)
    assert kept is not None
    assert len(kept) + len(learned["in_floating_point"]) == learned["products"]
    assert not kept.keys() & learned["in_floating_point"].keys()
    archive, _ = build(read_version(folder(root)), root / "store")
    assert f"model/{RANGES_FILE}" in read_archive(archive).files
    with open_archive(archive) as pipeline:
        assert isinstance(pipeline.task, MultipleChoice)
        assert "packed int8" in pipeline.task.model.runtime
    told = CliRunner().invoke(main, ["inspect", str(archive)])
    numbers = "int8 but" if learned["in_floating_point"] else "int8 on"
    assert f"computed in    {numbers}" in told.stdout


@fast
def test_the_same_rows_give_the_same_bytes_and_other_ranges_another_archive(root: Path) -> None:
    assert quantize(root).exit_code == 0
    first = (folder(root) / RANGES_FILE).read_bytes()
    archive, _ = build(read_version(folder(root)), root / "store")
    before = read_archive(archive).sha256
    assert quantize(root).exit_code == 0
    assert (folder(root) / RANGES_FILE).read_bytes() == first
    assert build(read_version(folder(root)), root / "store")[1] is False
    rows = (root / "data" / "drawn" / "train.jsonl").read_text().splitlines(keepends=True)
    (root / "data" / "drawn" / "train.jsonl").write_text("".join(random.Random(1).sample(rows, 5)))
    assert quantize(root).exit_code == 0
    archive, built = build(read_version(folder(root)), root / "store")
    assert built
    assert read_archive(archive).sha256 != before


def test_a_recipe_that_names_no_ranges_that_exist_or_are_used_is_refused(root: Path) -> None:
    recipe = folder(root) / "model.yaml"
    text = recipe.read_text()
    recipe.write_text(text + "ranges: ranges.safetensors\n")
    with pytest.raises(UserError, match="ranges: only `precision: int8` uses them"):
        read_version(folder(root))
    recipe.write_text(text + "precision: int8\nranges: ranges.safetensors\n")
    with pytest.raises(UserError, match=r"ranges: no file .*ranges\.safetensors; make it with `marctl quantize`"):
        read_version(folder(root))
