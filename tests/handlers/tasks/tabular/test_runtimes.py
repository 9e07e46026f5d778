"""A model's file is read without running what may be in it, and one that does not fit stops the load."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from marctl_handlers.core.errors import LoadError
from marctl_handlers.features import Specification, write_features
from marctl_handlers.tasks.tabular.runtimes.choose import device_of, libraries_of
from tests.handlers.tasks.tabular.loading import load_tabular
from tests.tiny_tables import SAVED, model_folder, save_sklearn, save_torch, save_xgboost, specification


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('unpickled')",)


def folder_with(folder: Path, name: str, content: bytes | None = None, features: Specification | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    write_features(features or specification(), folder)
    return folder


@pytest.mark.parametrize("name", ["model.json", "model.ubj", "model.onnx", "model.pt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, pickle.dumps(Evil())])
def test_a_file_of_another_kind_stops_the_load(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(LoadError, match=f"{name} is no "):
        load_tabular(folder_with(tmp_path / "model", name, content))


def test_a_pickled_module_is_never_loaded(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "model.pt")
    torch.save({"model": Evil()}, folder / "model.pt")
    with pytest.raises(LoadError, match=r"can run any code.*torch\.jit\.trace"):
        load_tabular(folder)


def test_a_classifier_exported_with_zipmap_is_refused_with_the_cure(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "model.onnx")
    save_sklearn(folder / "model.onnx", zipmap=True)
    with pytest.raises(LoadError, match="zipmap"):
        load_tabular(folder)


@pytest.mark.parametrize("kind", ["xgboost", "sklearn", "torch"])
def test_a_model_of_other_columns_stops_the_load(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    settings = model_folder(kind, folder)
    write_features(Specification(specification().features[:-1]), folder)
    with pytest.raises(LoadError):
        load_tabular(folder, **settings)


@pytest.mark.parametrize("kind", ["xgboost", "sklearn", "torch"])
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_models_of_pytorch_compute_on_the_gpu_and_others_say_that_they_do_not(
    tmp_path: Path, kind: str, wanted: str
) -> None:
    folder = tmp_path / "model"
    model_folder(kind, folder)
    if kind == "torch":
        assert device_of(folder, "cuda:1", wanted) == "cuda:1"
    elif wanted == "auto":
        assert device_of(folder, "cuda:1", wanted) == "cpu"
    else:
        with pytest.raises(LoadError, match=r"compute on the processor here; remove the line"):
            device_of(folder, "cuda:1", wanted)


def test_columns_in_another_order_stop_the_load(tmp_path: Path) -> None:
    import xgboost

    folder = folder_with(tmp_path / "model", "model.json")
    save_xgboost(folder / "model.json")
    booster = xgboost.Booster(model_file=folder / "model.json")
    names = ["amount", "income", "age", "home=family", "home=own", "home=rent"]
    booster.feature_names = names
    booster.save_model(folder / "model.json")
    with pytest.raises(LoadError, match=r"column 0 of the model is .amount., that of the feature .* .income."):
        load_tabular(folder)


def test_early_stopping_uses_the_best_iteration(tmp_path: Path) -> None:
    import numpy as np
    import xgboost

    folder = folder_with(tmp_path / "model", "model.json")
    save_xgboost(folder / "model.json")
    booster = xgboost.Booster(model_file=folder / "model.json")
    booster.set_attr(best_iteration="4")
    booster.save_model(folder / "model.json")
    encoded = np.zeros((3, 6), np.float32)
    wanted = booster[:5].predict(xgboost.DMatrix(encoded))
    np.testing.assert_allclose(load_tabular(folder).task.model.scores(encoded)[:, 0], wanted, atol=1e-7)


@pytest.mark.parametrize(("names", "said"), [([], "found none"), (["model.json", "model.pt"], "found model")])
def test_a_folder_holds_exactly_one_model(tmp_path: Path, names: list[str], said: str) -> None:
    folder = folder_with(tmp_path / "model", "") if not names else folder_with(tmp_path / "model", names[0], b"{}")
    for name in names[1:]:
        save_torch(folder / name)
    with pytest.raises(LoadError, match=said):
        load_tabular(folder)


@pytest.mark.parametrize(
    ("kind", "module", "extra"), [("xgboost", "xgboost", "xgboost"), ("sklearn", "onnxruntime", "onnx")]
)
def test_a_missing_library_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str, extra: str
) -> None:
    settings = model_folder(kind, tmp_path / "model")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LoadError, match=f"pip install {module}.*, or this project with its extra {extra}"):
        load_tabular(tmp_path / "model", **settings)


@pytest.mark.parametrize("kind", SAVED)
def test_the_libraries_of_a_version_are_those_of_its_runtime(tmp_path: Path, kind: str) -> None:
    model_folder(kind, tmp_path / "model")
    wanted = {"xgboost": "xgboost-cpu", "torch": "torch"}.get(kind, "onnxruntime")
    assert libraries_of(tmp_path / "model") == (wanted,)
