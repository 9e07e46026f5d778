from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from marctl.build.recipe import read_version
from marctl.cli import main
from marctl.core.errors import UserError
from marctl.starter.origin import Origin
from marctl.starter.starter import AROUND, EXAMPLE, FILES, start

INDEX = Origin("torchserve-marctl==0.1.0")


def test_nothing_that_is_there_is_changed(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    (tmp_path / "requirements.txt").symlink_to("elsewhere")
    started = start(tmp_path, INDEX)
    assert started.kept == [".gitignore", "requirements.txt"]
    assert (tmp_path / ".gitignore").read_text() == "mine\n"
    assert (tmp_path / "requirements.txt").is_symlink()
    assert "model_store/archives/" in started.advice[0]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    start(tmp_path, INDEX)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert start(tmp_path, INDEX).written == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_example_is_put_beside_recipes_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "model_store" / "mine" / "1.0").mkdir(parents=True)
    (tmp_path / "model_store" / "mine" / "1.0" / "model.yaml").write_text("task: multiple_choice\n")
    assert start(tmp_path, INDEX).written == list(AROUND)
    assert not (tmp_path / "model_store" / "hello").exists()


def test_a_file_in_the_way_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="is a file"):
        start(tmp_path / "taken", INDEX)
    (tmp_path / "model_store").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        start(tmp_path, INDEX)


def test_what_it_prints_next_begins_in_the_new_folder(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["init", str(tmp_path / "new")])
    assert f"  cd {tmp_path / 'new'}\n  marctl build\n" in done.output


def test_each_line_that_the_recipe_comments_out_is_valid_and_says_what_is_so_without_it(tmp_path: Path) -> None:
    start(tmp_path, INDEX)
    folder = tmp_path / "model_store" / "hello" / "1.0"
    plain = read_version(folder)
    shown = re.sub(r"(?m)^# (\w+: )", r"\1", (folder / "model.yaml").read_text())
    (folder / "model.yaml").write_text(shown)
    (folder / "weights").mkdir()
    full = read_version(folder)
    names = set(yaml.safe_load(shown))
    assert len(names) >= 14
    for name in names - {"weights", "licence", "data"}:
        assert getattr(full.recipe, name) == getattr(plain.recipe, name)


def test_every_file_that_comes_with_it_is_written_somewhere() -> None:
    assert {path.name for path in FILES.iterdir() if path.is_file()} == {*EXAMPLE.values(), *AROUND.values()}
