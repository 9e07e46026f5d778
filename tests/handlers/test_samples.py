"""A version that answers its own samples wrongly must not load."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from handlers.core.errors import LoadError
from handlers.core.settings import Settings
from handlers.loading import load_multiple_choice
from handlers.samples import check_samples
from scripts.build.adopt import adopt
from scripts.build.build import build

SETTINGS = Settings(task="multiple_choice", precision="float32")


def load(root: Path) -> Any:
    return load_multiple_choice(root / "model", "quiz", "1.0", SETTINGS, "cpu")


@pytest.fixture
def root(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """An extracted archive of a tiny BERT, with samples that its build filled in."""
    version = adopt(tiny_model("bert"), "quiz", "1.0", tmp_path / "recipes", precision="float32")
    archive, _ = build(version, tmp_path / "store")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "root")
    return tmp_path / "root"


def test_a_whole_archive_answers_its_samples(root: Path) -> None:
    assert json.loads((root / "samples.json").read_text())
    check_samples(load(root), root)


def test_other_weights_are_told_by_the_samples(root: Path) -> None:
    path = root / "model" / "model.safetensors"
    weights = {name: -weight if "classifier" in name else weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"answers its sample 0 wrongly: .*; rebuild the archive"):
        check_samples(load(root), root)


def test_an_archive_without_samples_has_none_to_fail(root: Path) -> None:
    (root / "samples.json").unlink()
    (root / "metadata.json").unlink()
    check_samples(load(root), root)
