"""A small table of loans, its feature specification, and a model of each runtime trained on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xgboost
from numpy.typing import NDArray

from marctl_handlers.features import Features, Specification, fit, resolve_table, specification_of, write_features

ROWS = 300
FEATURES: list[dict[str, Any]] = [
    {
        "name": "income",
        "type": "number",
        "unit": "EUR",
        "range": [0, 100_000],
        "missing": "median",
        "transform": [{"kind": "log", "shift": 1}, "standardise"],
        "monotone": "decreasing",
    },
    {"name": "amount", "type": "number", "range": [0, 50_000], "outside": "clip", "transform": "standardise"},
    {"name": "age", "type": "integer", "range": [18, 120], "transform": "standardise", "protected": True},
    {"name": "home", "type": "category", "missing": "most_frequent", "transform": "one_hot"},
]
LABELS = ("good", "bad")
ROW = {"income": 1500, "amount": 9000.5, "age": 30, "home": "rent"}
Encoded = NDArray[np.float32]


def loans() -> tuple[pa.Table, NDArray[np.int64]]:
    """Features, and whether each loan went bad."""
    rng = np.random.default_rng(3)
    income, amount = rng.lognormal(7.5, 0.6, ROWS).round(2), rng.uniform(100, 20_000, ROWS).round(2)
    home, age = rng.choice(["own", "rent", "family"], ROWS), rng.integers(18, 90, ROWS)
    risk = amount / income / 5 + (home == "rent") - age / 60 + rng.normal(0, 0.3, ROWS)
    return pa.table({"income": income, "amount": amount, "age": age, "home": home}), (risk > 0.4).astype(np.int64)


def specification() -> Specification:
    return fit(specification_of(FEATURES), loans()[0])


def stored_specification() -> Specification:
    """The same, but for the amount, all features of a customer, who may be named instead."""
    customer = {"name": "customer", "key": "customer:{customer}"}
    stored = [feature if feature["name"] == "amount" else {**feature, "entity": customer} for feature in FEATURES]
    stored[0] = {**stored[0], "freshness_s": 3600}
    return fit(specification_of(stored), loans()[0])


def encoded_loans() -> tuple[Encoded, NDArray[np.int64]]:
    table, bad = loans()
    features = Features(specification())
    return features.encode(resolve_table(features, table)), bad


def save_xgboost(path: Path, *, target: Any = None, **options: Any) -> None:
    """`target`: what to learn in place of whether a loan went bad."""
    x, bad = encoded_loans()
    options = {"objective": "binary:logistic", "max_depth": 3, "seed": 1, "nthread": 1, **options}
    xgboost.train(options, xgboost.DMatrix(x, bad if target is None else target), 20).save_model(path)


def save_torch(path: Path, outputs: int = 1) -> None:
    x, bad = encoded_loans()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(100):
        wanted = torch.from_numpy(bad)
        logits = model(torch.from_numpy(x))
        loss = (
            torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], wanted.float())
            if outputs == 1
            else torch.nn.functional.cross_entropy(logits, wanted)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is no longer developed
        torch.jit.save(torch.jit.trace(model.eval(), torch.from_numpy(x[:2])), str(path))


def save_sklearn(path: Path, *, zipmap: bool = False) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    x, bad = encoded_loans()
    model = LogisticRegression().fit(x, bad)
    options = {LogisticRegression: {"zipmap": zipmap}}
    path.write_bytes(to_onnx(model, x[:1], options=options, target_opset=17).SerializeToString())


def save_lightgbm(path: Path) -> None:
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, bad = encoded_loans()
    model = lightgbm.LGBMClassifier(n_estimators=20, num_leaves=7, n_jobs=1, verbose=-1).fit(x, bad)
    inputs = [("input", FloatTensorType([None, x.shape[1]]))]
    path.write_bytes(convert_lightgbm(model, initial_types=inputs, zipmap=False).SerializeToString())


SAVED: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "xgboost": ("model.json", save_xgboost, {}),
    "sklearn": ("model.onnx", save_sklearn, {}),
    "lightgbm": ("model.onnx", save_lightgbm, {}),
    "torch": ("model.pt", save_torch, {"output": "logit"}),
}
"""By kind: file, how it is made, and the settings that it needs."""


def model_folder(kind: str, folder: Path) -> dict[str, Any]:
    """Write an archive's `model/` folder; returns its version's settings."""
    name, save, settings = SAVED[kind]
    folder.mkdir(parents=True)
    save(folder / name)
    write_features(specification(), folder)
    return {"labels": list(LABELS), **settings}
