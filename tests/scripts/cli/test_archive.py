from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from marctl.build import build as build_module
from marctl.cli import main
from marctl.cli.archive import computed_in
from marctl_handlers.core.settings import Settings
from marctl_handlers.text.processor import Processor
from marctl_handlers.text.settings import TextSettings


def marctl(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Options that keep a build in the test's folder, without the slow verification that other tests cover."""
    monkeypatch.setattr(build_module, "verify", lambda *_: None)
    return ["--recipes", tmp_path / "recipes", "--store", tmp_path / "store"]


def test_model_folder_becomes_a_recipe_and_an_archive(
    tmp_path: Path, places: list[object], tiny_model: Callable[[str], Path]
) -> None:
    model = ["--from", tiny_model("bert"), "--name", "quiz", "--version", "1.0"]
    done = marctl("build", *model, "--precision", "float32", *places, "--json")
    assert done.exit_code == 0, done.stderr
    [archive] = json.loads(done.stdout)["archives"]
    assert (archive["model"], archive["version"], archive["built"]) == ("quiz", "1.0", True)
    again = json.loads(marctl("build", *places, "--json").stdout)["archives"]
    assert again == [archive | {"built": False}]
    shown = marctl("inspect", archive["archive"])
    assert archive["sha256"] in shown.stdout
    assert "model/model.safetensors" in shown.stdout
    inspected: dict[str, Any] = json.loads(marctl("inspect", archive["archive"], "--json").stdout)
    assert inspected["metadata"]["task"] == "multiple_choice"
    refused = marctl("build", *model, *places)
    assert refused.exit_code == 1
    assert "exists already" in refused.stderr


@pytest.mark.parametrize(
    "arguments", [["--from", "x"], ["--name", "x"], ["mcqa", "--from", "x", "--name", "a", "--version", "1"]]
)
def test_options_that_do_not_fit_together_are_misuse(arguments: list[str]) -> None:
    assert marctl("build", *arguments).exit_code == 2


def test_unknown_recipe_tells_which_there_are(tmp_path: Path) -> None:
    done = marctl("build", "nosuch", "9", "--recipes", tmp_path)
    assert done.exit_code == 1
    assert "nosuch/9/model.yaml; there are: none" in done.stderr


def test_folder_without_a_model_is_told_in_one_line(tmp_path: Path) -> None:
    done = marctl("build", "--from", tmp_path, "--name", "quiz", "--version", "1.0", "--recipes", tmp_path)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no config.json" in done.stderr


@pytest.mark.parametrize(
    ("kind", "settings", "device", "told"),
    [
        (Settings, {}, "cpu", None),
        (Settings, {}, "auto", "on an NVIDIA GPU where the node has one"),
        (TextSettings, {}, "cpu", f"{Processor.here().numbers('auto')} on this processor: "),
        (TextSettings, {"precision": "float32"}, "cpu", "float32 on this processor: "),
        (
            TextSettings,
            {"precision": "float32"},
            "auto",
            "on an NVIDIA GPU where the node has one; float32 on this processor: ",
        ),
        (TextSettings, {}, "cuda", "on an NVIDIA GPU, nowhere else"),
    ],
)
def test_inspecting_tells_where_a_version_computes(
    kind: type[Settings], settings: dict[str, Any], device: str, told: str | None
) -> None:
    found = computed_in({"settings": settings, "device": device}, kind).get("computed_in")
    assert found == told or (found is not None and told is not None and found.startswith(told))


def test_inspecting_what_is_no_archive_fails(tmp_path: Path) -> None:
    (tmp_path / "x.mar").write_text("x")
    assert marctl("inspect", tmp_path / "x.mar").exit_code == 1
    assert marctl("inspect", tmp_path / "nosuch.mar").exit_code == 1
