"""A model's file becomes a recipe with everything beside it; what is wrong is told before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from marctl.build.adopt import adopt, default_task
from marctl.build.build import build
from marctl.build.lone_file import ModelFile
from marctl.build.reader import read_archive
from marctl.core.errors import UserError
from marctl_handlers.features.tables import rows_of
from tests.tiny_tables import FEATURES, loans, save_xgboost, specification


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its specification and its training table."""
    folder = tmp_path_factory.mktemp("files")
    save_xgboost(folder / "risk.json")
    save_xgboost(folder / "several.ubj", target=np.arange(300) % 3, objective="multi:softprob", num_class=3)
    (folder / "features.yaml").write_bytes(msgspec.yaml.encode(specification()))
    pyarrow.csv.write_csv(loans()[0], folder / "loans.csv")
    pyarrow.parquet.write_table(loans()[0], folder / "loans.parquet")
    return folder


def test_a_file_becomes_an_archive_with_its_specification(files: Path, tmp_path: Path) -> None:
    source = ModelFile(files / "risk.json", files / "features.yaml", files / "loans.csv")
    version = adopt(source, "risk", "1.0", tmp_path / "recipes", explain=True, labels=["good", "bad"])
    assert version.recipe.task == "tabular"
    assert version.recipe.libraries == ["xgboost-cpu"]
    assert version.recipe.explanations is not None
    assert len(version.recipe.samples) == 2
    path, built = build(version, tmp_path / "store")
    assert built
    archive = read_archive(path)
    assert {"model/model.json", "model/features.json", "model/background.jsonl"} <= archive.files.keys()
    assert "xgboost-cpu" in archive.metadata["libraries"]
    assert "captum" in archive.metadata["libraries"]
    again = adopt(source, "risk", "1.0", tmp_path / "again", explain=True, labels=["good", "bad"])
    assert build(again, tmp_path / "other")[0].read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["loans.csv", "loans.parquet"])
def test_a_background_is_a_sample_of_the_table(files: Path, tmp_path: Path, name: str) -> None:
    adopt(ModelFile(files / "risk.json", files / "features.yaml", files / name), "risk", "1.0", tmp_path)
    lines = (tmp_path / "risk/1.0/model/background.jsonl").read_text().splitlines()
    known = [json.dumps(row) for row in rows_of(loans()[0], specification())]
    assert len(set(lines)) == 100
    assert {json.dumps(json.loads(line)) for line in lines} <= {json.dumps(json.loads(row)) for row in known}


def test_a_model_all_of_whose_features_may_be_missing_has_samples(files: Path, tmp_path: Path) -> None:
    lenient = [msgspec.structs.replace(one, missing="keep", fill=None) for one in specification().features]
    (tmp_path / "features.json").write_bytes(msgspec.json.encode(lenient))
    version = adopt(ModelFile(files / "risk.json", tmp_path / "features.json"), "risk", "1.0", tmp_path)
    assert len(version.recipe.samples) == 2


def test_a_model_of_several_classes_gets_names_for_them(files: Path, tmp_path: Path) -> None:
    version = adopt(ModelFile(files / "several.ubj", files / "features.yaml"), "risk", "1.0", tmp_path)
    assert version.task_settings["labels"] == ["0", "1", "2"]


def written(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else msgspec.yaml.encode(content))
    return path


def test_what_is_wrong_is_told_and_leaves_nothing(files: Path, tmp_path: Path) -> None:
    model, good = files / "risk.json", files / "features.yaml"
    cycle = [{"name": n, "type": "number", "derived": {"operation": "sum", "of": [o, o]}} for n, o in ("ab", "ba")]
    wrong: list[tuple[ModelFile, dict[str, Any], str]] = [
        (ModelFile(model), {}, "--features is missing"),
        (ModelFile(model, written(tmp_path / "open.yaml", FEATURES)), {}, r"income\.fill: not given"),
        (ModelFile(model, written(tmp_path / "text.yaml", b"a: [")), {}, "not YAML"),
        (ModelFile(model, written(tmp_path / "cycle.yaml", cycle)), {}, "a <- b|b <- a"),
        (ModelFile(model, written(tmp_path / "self.yaml", b"features: &a [*a]")), {}, r"features\[0\]"),
        (ModelFile(model, written(tmp_path / "nan.yaml", b"- {name: a, type: number, range: [0, .nan]}")), {}, "nan"),
        (ModelFile(written(tmp_path / "bad.json", b"{}"), good), {}, r"model\.json is no XGBoost model"),
        (ModelFile(written(tmp_path / "bad.txt", b""), good), {}, r"\.onnx"),
        (ModelFile(model, good, written(tmp_path / "x.csv", b"age\nold\n")), {}, r"x\.csv: .*old"),
        (ModelFile(model, good, written(tmp_path / "y.csv", b"age\n300\n")), {}, "no row fits"),
        (ModelFile(model, good), {"labels": ["one"]}, "a setting of the task is wrong"),
        (ModelFile(model, good), {"colour": 1}, "unknown field `colour`"),
    ]
    for source, settings, said in wrong:
        with pytest.raises(UserError, match=said):
            adopt(source, "risk", "1.0", tmp_path / "recipes", **settings)
        assert not (tmp_path / "recipes" / "risk").exists()


def test_the_task_follows_from_the_file(tmp_path: Path) -> None:
    assert default_task(tmp_path) == "multiple_choice"
    assert default_task(Path("model.onnx")) == "tabular"
    with pytest.raises(UserError, match=r"expected a folder .* or a file \(\.json, \.onnx, \.pt, \.ubj\)"):
        default_task(Path("model.h5"))
