from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from marctl.batch.archive import describe
from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build, library_versions
from marctl.build.reader import read_archive
from marctl.build.recipe import Version, read_version
from marctl.build.verify import selfcheck, verify
from marctl.core.errors import UserError
from marctl_handlers.archive import load
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Model
from tests.signers import Signers


def rewrite(archive: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """A copy of an archive with some files replaced, or left out where None."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as out:
        for info in source.infolist():
            content = changes.get(info.filename, source.read(info))
            if content is not None:
                out.writestr(info, content)
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """One finished, verified archive."""
    folder = tmp_path_factory.mktemp("built")
    version = adopt(tiny_model("bert"), "quiz", "1.0", folder / "recipes", precision="float32")
    return build(version, folder / "store")[0]


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds without the verification, for what does not depend on it: it takes most of a build's time."""
    monkeypatch.setattr(build_module, "verify", lambda *_: None)


def extract(archive: Path, root: Path) -> Path:
    with zipfile.ZipFile(archive) as file:
        file.extractall(root)
    return root


@pytest.mark.usefixtures("unverified")
def test_same_sources_build_the_same_bytes_in_another_folder_at_another_time(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], Path]
) -> None:
    first, _ = build(version, tmp_path / "one")
    elsewhere = tmp_path / "moved" / "model"
    elsewhere.parent.mkdir()
    for path in sorted(tiny_model("bert").iterdir(), reverse=True):
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / path.name).write_bytes(path.read_bytes())
    moved = adopt(elsewhere, "quiz", "1.0", tmp_path / "other-recipes", precision="float32")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second, _ = build(moved, tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", ["roberta", "deberta", "distilbert", "bertweet"])
def test_any_multiple_choice_model_becomes_an_archive_that_answers(
    kind: str, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    version = adopt(tiny_model(kind), f"my-{kind}", "1.0", tmp_path / "recipes", precision="float32")
    path, fresh = build(version, tmp_path / "store")
    archive = read_archive(path)
    assert fresh
    assert (archive.name, archive.version, len(archive.samples)) == (f"my-{kind}", "1.0", 1)


@pytest.mark.usefixtures("unverified")
def test_unchanged_sources_are_not_built_again_and_changed_ones_are(version: Version, tmp_path: Path) -> None:
    build(version, tmp_path / "store")
    assert build(version, tmp_path / "store")[1] is False
    recipe = version.folder / "model.yaml"
    recipe.write_text("# a remark\n" + recipe.read_text())
    assert build(read_version(version.folder), tmp_path / "store")[1] is False
    recipe.write_text(recipe.read_text().replace("max_tokens: 126", "max_tokens: 100"))
    path, fresh = build(read_version(version.folder), tmp_path / "store")
    assert fresh
    with zipfile.ZipFile(path) as file:
        assert yaml.safe_load(file.read("model-config.yaml"))["handler"]["max_tokens"] == 100


def test_a_build_signs_what_it_made_and_nothing_else(version: Version, built: Path, tmp_path: Path) -> None:
    """In the store is an archive that says to be of these very sources, with other code in it."""
    signers, store = Signers(tmp_path), tmp_path / "store"
    store.mkdir()
    key = signers.key("release", trusted=True)
    rewrite(built, store / version.archive_name, {"entry.py": b"raise SystemExit"})
    assert build(version, store)[1] is False
    path, fresh = build(version, store, key=key)
    assert fresh
    assert path.read_bytes() == built.read_bytes()
    assert signers.check(path) == "release"
    assert build(version, store, key=key)[1] is False


@pytest.mark.usefixtures("unverified")
def test_damaged_archive_is_built_again(version: Version, tmp_path: Path) -> None:
    path, _ = build(version, tmp_path / "store")
    path.write_bytes(path.read_bytes()[:1000])
    assert build(version, tmp_path / "store")[1] is True


def test_wrong_expected_answer_leaves_no_archive_behind(version: Version, tmp_path: Path) -> None:
    recipe = version.folder / "model.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["samples"][0]["expected"]["probabilities"] = [0.9, 0.05, 0.05]
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"samples\[0\]: probabilities are .* expected \[0.9, 0.05, 0.05\]"):
        build(read_version(version.folder), tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.usefixtures("unverified")
def test_failed_build_keeps_the_archive_that_was_there(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = build(version, tmp_path / "store")
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "pack", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        build(version, tmp_path / "store", force=True)
    assert path.read_bytes() == before
    assert [p.name for p in (tmp_path / "store").iterdir()] == [path.name]


def test_archive_answers_with_its_own_handlers_and_no_installed_copy(built: Path, tmp_path: Path) -> None:
    task = "marctl_handlers/tasks/multiple_choice/task.py"
    with zipfile.ZipFile(built) as file:
        source = file.read(task).decode()
    marked = source.replace("confidence=round(", "confidence=7 + round(")
    assert marked != source
    changed = rewrite(built, tmp_path / "changed.mar", {task: marked.encode()})
    assert selfcheck(read_archive(changed))["answers"][0]["confidence"] > 7


def test_archive_whose_handlers_had_another_name_answers_with_them(built: Path, tmp_path: Path) -> None:
    """They were a package `handlers` once; such archives are served on."""
    former = tmp_path / "former.mar"
    with zipfile.ZipFile(built) as source, zipfile.ZipFile(former, "w") as out:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith(".py"):
                content = content.replace(b"marctl_handlers", b"handlers").replace(
                    b"confidence=round", b"confidence=7 + round"
                )
            out.writestr(info.filename.replace("marctl_handlers/", "handlers/"), content)
    assert selfcheck(read_archive(former))["answers"][0]["confidence"] > 7
    extract(former, tmp_path / "root")
    assert [field.name for field in describe(tmp_path / "root", "quiz 1.0").fields] == [
        "question",
        "choices",
        "context",
    ]


def test_archive_needs_no_network(built: Path, tmp_path: Path) -> None:
    root = extract(built, tmp_path / "root")
    (root / "sitecustomize.py").write_text(
        "import socket\ndef refuse(*a, **k): raise AssertionError('network used')\nsocket.socket.connect = refuse\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "marctl_handlers.selfcheck"],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["answers"], done.stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model/model.safetensors", b"", "does not hold a model for AutoModelForMultipleChoice"),
        ("model/tokenizer.json", None, "tokenizer"),
        ("model/config.json", None, "config.json is missing"),
        (
            "metadata.json",
            json.dumps({"libraries": {"torch": "99.0"}}).encode(),
            r"torch is .*pip install 'torch>=99.0'",
        ),
        ("metadata.json", json.dumps({"libraries": {"nosuchlib": "1"}}).encode(), "nosuchlib is not installed"),
        ("model-config.yaml", b"handler: {task: multiple_choice, max_tokns: 3}", "max_tokns"),
        (
            "model-config.yaml",
            b"handler: {task: multiple_choice, max_tokens: 3}",
            "Expected `int` >= 8 - at `\\$.max_tokens`",
        ),
        ("model-config.yaml", b"handler: {task: nonsense}", "expected one of .*multiple_choice"),
        ("model-config.yaml", b"minWorkers: 1", "no `handler` section"),
    ],
)
def test_broken_archive_tells_what_is_wrong(
    name: str, content: bytes | None, words: str, built: Path, tmp_path: Path
) -> None:
    root = extract(rewrite(built, tmp_path / "broken.mar", {name: content}), tmp_path / "root")
    config = yaml.safe_load((root / "model-config.yaml").read_text())
    with pytest.raises(LoadError, match=words):
        load(root, Model("quiz", "1.0"), config.get("handler"))


def test_archive_that_does_not_load_fails_its_verification(built: Path, tmp_path: Path) -> None:
    broken = rewrite(built, tmp_path / "broken.mar", {"model/config.json": None})
    with pytest.raises(UserError, match=r"quiz 1\.0: the archive does not load: .*config\.json is missing"):
        verify(broken)


def test_archive_records_what_it_was_verified_with(built: Path, version: Version) -> None:
    metadata = read_archive(built).metadata
    assert metadata["libraries"] == library_versions(version)
    assert metadata["input_schema"]["$defs"]["Question"]["required"] == ["question", "choices"]


def test_no_path_of_the_builder_is_in_the_archive(built: Path, tiny_model: Callable[[str], Path]) -> None:
    content = built.read_bytes()
    for path in (built.parent, tiny_model("bert"), Path(build_module.__file__).parent):
        assert str(path).encode() not in content


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_file_that_is_no_archive_is_told_plainly(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.mar"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a whole model archive"):
        read_archive(path)
