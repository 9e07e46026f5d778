"""One version that cannot be built keeps no other one from being served."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier

import psutil
import pytest

from marctl.build import build as build_module
from marctl.build.adopt import adopt
from marctl.build.build import build_all
from marctl.build.reader import Archive, read_archive
from marctl.core.children import Children
from marctl.core.errors import UserError


def verified(path: Path, *_: object) -> Archive:
    return read_archive(path)


@pytest.fixture
def recipes(tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two good ones; the slow verification is not what these tests are about."""
    monkeypatch.setattr(build_module, "verify", verified)
    for version in ("1.0", "2.0"):
        adopt(tiny_model("bert"), "quiz", version, tmp_path / "recipes", precision="float32")
    return tmp_path / "recipes"


def spoil(recipe: Path, before: str, after: str) -> None:
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after))


def test_a_bad_recipe_is_left_out_with_its_fault_and_the_others_are_built(recipes: Path, tmp_path: Path) -> None:
    spoil(recipes / "quiz" / "2.0" / "model.yaml", "precision: float32", "precison: float32")
    notes: list[str] = []
    assert [path.name for path in build_all(recipes, tmp_path / "store", notes.append)] == ["quiz-1.0.mar"]
    [warning] = [note for note in notes if note.startswith("warning: ")]
    assert warning.startswith("warning: quiz 2.0 cannot be built, it is left out: ")
    assert "precison" in warning


def test_of_a_version_whose_recipe_went_bad_the_archive_that_was_built_before_is_served(
    recipes: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    before = [path.read_bytes() for path in build_all(recipes, store)]
    spoil(recipes / "quiz" / "2.0" / "model.yaml", "prediction:", "predicted:")
    notes: list[str] = []
    paths = build_all(recipes, store, notes.append)
    assert [path.name for path in paths] == ["quiz-1.0.mar", "quiz-2.0.mar"]
    assert [path.read_bytes() for path in paths] == before
    assert any("quiz 2.0 cannot be built, the archive that was built before is served: " in note for note in notes)


def test_an_archive_that_does_not_load_any_more_is_left_out_with_its_bad_recipe(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served, it would fail the whole start: as where a library of both was uninstalled."""
    store = tmp_path / "store"
    build_all(recipes, store)
    spoil(recipes / "quiz" / "2.0" / "model.yaml", "prediction:", "predicted:")

    def fails(path: Path, *_: object) -> Archive:
        raise UserError(f"{path} does not load")

    monkeypatch.setattr(build_module, "verify", fails)
    notes: list[str] = []
    assert [path.name for path in build_all(recipes, store, notes.append)] == ["quiz-1.0.mar"]
    assert any(note.startswith("warning: quiz 2.0 cannot be built, it is left out: ") for note in notes)


def test_whatever_a_model_raises_while_it_is_laid_out_stops_nobody_else(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build_module.lay_out_model

    def lay_out(version: object, folder: Path) -> None:
        if str(version) == "quiz 1.0":
            raise KeyError("head")
        right(version, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(build_module, "lay_out_model", lay_out)
    notes: list[str] = []
    assert [path.name for path in build_all(recipes, tmp_path / "store", notes.append)] == ["quiz-2.0.mar"]
    assert "quiz 1.0 cannot be built, it is left out: quiz 1.0: KeyError: 'head'" in " ".join(notes)


def test_where_nothing_can_be_built_the_faults_of_all_are_told(recipes: Path, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        spoil(recipes / "quiz" / version / "model.yaml", "precision: float32", f"nonsense_{version[0]}: 1")
    with pytest.raises(UserError, match=r"nonsense_1[\s\S]*nonsense_2"):
        build_all(recipes, tmp_path / "store")


def test_versions_are_verified_side_by_side(recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2, timeout=60)

    def verify(path: Path, *_: object) -> Archive:
        both.wait()
        return read_archive(path)

    monkeypatch.setattr(build_module, "verify", verify)
    monkeypatch.setattr(build_module, "side_by_side", lambda: 2)
    assert len(build_all(recipes, tmp_path / "store")) == 2


def test_an_interrupt_ends_the_checks_that_run_and_leaves_no_unfinished_file(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'told'); time.sleep(600)"

    def verify(path: Path, _: object, children: Children) -> Archive:
        children.run([sys.executable, "-c", code], folder=tmp_path, env=dict(os.environ), timeout_s=600)
        raise UserError(f"{path} was interrupted")

    def interrupt(note: str) -> None:
        if note == "quiz 2.0: packing":
            while not (tmp_path / "told").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "verify", verify)
    with pytest.raises(KeyboardInterrupt):
        build_all(recipes, tmp_path / "store", interrupt)
    assert not psutil.pid_exists(int((tmp_path / "told").read_text()))
    assert list((tmp_path / "store").iterdir()) == []
