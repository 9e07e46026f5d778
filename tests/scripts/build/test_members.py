"""A recipe with members: what is checked, what goes into its archive, and what makes it anew."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.build.reader import read_archive
from marctl.build.recipe import read_version
from marctl.core.errors import UserError
from marctl.stack.samples import faults_of
from marctl.train.evaluate import open_archive
from tests.tiny_ensembles import MEMBERS, REQUEST, write_ensemble, write_recipes


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds without the verification, for what does not depend on it: it takes most of a build's time."""
    monkeypatch.setattr(build_module, "verify", lambda *_: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A verified archive; those of its members lie beside it."""
    root = tmp_path_factory.mktemp("built")
    version = read_version(write_recipes(root / "recipes", tiny_model))
    return build(version, root / "store")[0]


def test_members_are_built_and_packed_once_each(built: Path) -> None:
    assert sorted(path.name for path in built.parent.iterdir()) == ["quiz-1.0.mar", "quiz-2.0.mar", "quiz-3.0.mar"]
    with zipfile.ZipFile(built) as whole:
        names = whole.namelist()
        assert len([name for name in names if name.endswith("model.safetensors")]) == 2
        assert not [name for name in names if name.startswith("members/") and name.endswith(".py")]
        for version in ("1.0", "2.0"):
            with zipfile.ZipFile(built.with_name(f"quiz-{version}.mar")) as member:
                for name in ("model/model.safetensors", "samples.json", "metadata.json", "model-config.yaml"):
                    assert whole.read(f"members/quiz/{version}/{name}") == member.read(name)


def test_metadata_names_each_member_s_archive_by_digest(built: Path) -> None:
    archive = read_archive(built)
    members = {name: read_archive(built.with_name(f"quiz-{name}.mar")) for name in ("1.0", "2.0")}
    assert [(member["version"], member["sha256"]) for member in archive.metadata["members"]] == [
        (f"quiz/{version}", member.sha256) for version, member in members.items()
    ]
    output = archive.metadata["output_schema"]["$defs"]["EnsembleAnswer"]["properties"]
    assert {"prediction", "probabilities", "members", "failed"} <= set(output)


def test_the_archive_answers_for_whoever_opens_it(built: Path) -> None:
    archive = read_archive(built)
    with open_archive(built) as pipeline:
        [answer] = pipeline.predict([pipeline.task.question_type(**REQUEST)])
    assert (answer.members, answer.failed) == (["1.0", "2.0"], [])
    assert archive.task.is_right(answer, answer.prediction)
    sample = archive.samples[0]
    assert faults_of(archive, sample, {"failed": [], "prediction": 3})
    assert faults_of(archive, sample, {"failed": ["1.0"], "prediction": 3}) == [], "the rest may answer otherwise"
    strict = replace(sample, expected={"failed": []})
    assert faults_of(archive, strict, {"failed": ["1.0"]}) == ["failed is ['1.0'], expected []"]


@pytest.mark.usefixtures("unverified")
def test_same_members_build_the_same_bytes_and_other_ones_do_not(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    first = read_version(write_recipes(tmp_path / "a", tiny_model))
    again = read_version(write_recipes(tmp_path / "b", tiny_model))
    one, _ = build(first, tmp_path / "one")
    two, _ = build(again, tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert build(first, tmp_path / "one")[1] is False
    member = tmp_path / "a" / "quiz" / "1.0" / "model.yaml"
    member.write_text(member.read_text().replace("max_tokens: 126", "max_tokens: 100"))
    assert build(read_version(first.folder), tmp_path / "one")[1] is True
    assert one.read_bytes() != two.read_bytes()


def test_a_member_that_fails_when_it_is_built_is_not_passed_over(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker goes on without it; the build, which may be mended, does not."""
    version = read_version(write_ensemble(built.parents[1] / "recipes" / "quiz" / "5.0"))
    lay_out_member = build_module.lay_out_member

    def damaged(member: Any, folder: Path) -> None:
        lay_out_member(member, folder)
        if member.version == "2.0":
            (folder / "model" / "model.safetensors").write_bytes(b"damaged")

    monkeypatch.setattr(build_module, "lay_out_member", damaged)
    with pytest.raises(UserError, match=r"against the model's own library: failed is \['2.0'\], expected \[\]"):
        build(version, built.parent)
    assert not built.with_name("quiz-5.0.mar").exists()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"members": None}, "members: expected a list of {version: MODEL/VERSION}, two or more, got None"),
        ({"members": MEMBERS[:1]}, "two or more"),
        ({"members": [*MEMBERS, {"version": "quiz/9.9"}]}, "members[2]: quiz/9.9: "),
        (
            {"members": [*MEMBERS, {"version": "quiz/3.0"}]},
            "members[2]: quiz/3.0: a version cannot be a member of itself",
        ),
        ({"members": [*MEMBERS, {"version": "quiz/4.0"}]}, "made of other versions itself; name those as members"),
        ({"members": [*MEMBERS, {"version": "../x"}]}, "members[2].version: expected MODEL/VERSION, got '../x'"),
        ({"members": [MEMBERS[0], {"version": "quiz/2.0", "weight": 0}]}, "members[1].weight"),
        ({"members": [MEMBERS[0], {"version": "quiz/2.0", "wieght": 1}]}, "wieght"),
        ({"combine": "mean"}, "combine"),
        ({"weights": {"directory": "."}}, "weights: the members bring theirs; remove the section"),
        ({"samples": [{"request": REQUEST, "expected": {"predicted": 1}}]}, "predicted"),
    ],
)
def test_a_wrong_recipe_is_told_with_the_place(
    changes: dict[str, Any], fault: str, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = write_recipes(tmp_path, tiny_model, **changes)
    write_ensemble(tmp_path / "quiz" / "4.0", members=[{"version": "quiz/3.0"}, {"version": "quiz/1.0"}])
    with pytest.raises(UserError) as caught:
        read_version(folder)
    assert fault in str(caught.value), str(caught.value)


def test_members_of_other_tasks_are_refused(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    folder = write_recipes(tmp_path, tiny_model, members=[*MEMBERS, {"version": "embed/1.0"}])
    other = tmp_path / "embed" / "1.0"
    other.mkdir(parents=True)
    sample = {"request": {"input_text": "bread"}, "expected": {"embedding": [0.1]}}
    recipe = {
        "task": "embedding",
        "description": "x",
        "weights": {"directory": str(tiny_model("bert"))},
        "samples": [sample],
    }
    (other / "model.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"Embedding .* and MultipleChoice .* cannot answer together"):
        read_version(folder)


def test_no_recipe_is_written_for_an_ensemble_from_a_folder(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="--task ensemble: it is made of other versions"):
        adopt(tiny_model("bert"), "quiz", "1.0", tmp_path, task="ensemble")


def test_a_stack_s_weights_go_into_the_archive(
    tmp_path: Path, tiny_model: Callable[[str], Path], unverified: None
) -> None:
    members = [{"version": "quiz/1.0"}, {"version": "quiz/2.0"}]
    folder = write_recipes(tmp_path / "recipes", tiny_model, members=members, combine="stack")
    weights = {"quiz/1.0": 0.5, "quiz/2.0": 0.75}
    (folder / "stack.json").write_text(json.dumps(weights))
    path, _ = build(read_version(folder), tmp_path / "store")
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("model/stack.json")) == weights
    (folder / "stack.json").write_text(json.dumps({"quiz/1.0": 0.5, "quiz/2.0": 0.7}))
    assert build(read_version(folder), tmp_path / "store")[1] is True
