"""Small XGBoost models of any size, over twenty numbers: what a fleet of scoring models looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
import yaml

from loadtest.shared.archives import Files, read_files, write_version
from marctl.build.build import build
from marctl.build.recipe import read_version
from marctl_handlers.features import specification_of, write_features

FEATURES = [f"f{i}" for i in range(20)]
ROWS = 4000
SMALLEST_BYTES, LARGEST_BYTES = 100_000, 5_000_000
SIZES = 12
"""Different models; versions of one size have the same trees under names of their own."""
MODEL = "model/model.ubj"


def sized_models() -> list[bytes]:
    """Boosters of about 100 kB to 5 MB, evenly spread on a logarithmic scale, the smallest first."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(ROWS, len(FEATURES))).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + x[:, 2] + rng.normal(0, 1.5, ROWS) > 0).astype(int)
    options = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.02, "seed": 1, "nthread": 1}
    data = xgboost.DMatrix(x, y, feature_names=FEATURES)
    per_round = len(raw(xgboost.train(options, data, 50))) / 50
    sizes = np.geomspace(SMALLEST_BYTES, LARGEST_BYTES, SIZES)
    whole = xgboost.train(options, data, round(sizes[-1] / per_round))
    return [raw(whole[: max(round(size / per_round), 1)]) for size in sizes]


def raw(booster: xgboost.Booster) -> bytes:
    return bytes(booster.save_raw("ubj"))


def row(seed: int) -> dict[str, float]:
    values = np.random.default_rng(seed).normal(size=len(FEATURES)).astype(np.float32)
    return {name: round(float(value), 4) for name, value in zip(FEATURES, values, strict=True)}


def sample_of(model: bytes) -> dict[str, Any]:
    """A request, and what the booster itself answers."""
    booster = xgboost.Booster()
    booster.load_model(bytearray(model))
    asked = row(0)
    score = float(booster.inplace_predict(np.array([list(asked.values())], np.float32))[0])
    return {"request": {"features": asked}, "expected": {"prediction": round(score, 5)}}


def base_archive(folder: Path, model: bytes, workers: str | int = "shared") -> Files:
    """What `marctl build` makes of one of them."""
    place, weights = folder / "recipes" / "base" / "1.0", folder / "weights"
    place.mkdir(parents=True)
    weights.mkdir()
    (weights / "model.ubj").write_bytes(model)
    write_features(specification_of([{"name": name, "type": "number"} for name in FEATURES]), weights)
    content = {
        "task": "tabular",
        "description": "trees",
        "weights": {"directory": "../../../weights"},
        "workers": workers,
        "samples": [sample_of(model)],
    }
    (place / "model.yaml").write_text(yaml.safe_dump(content))
    path, _ = build(read_version(place), folder / "built")
    return read_files(path)


def write_versions(files: Files, store: Path, names: list[str], models: list[bytes]) -> Iterator[Path]:
    """A version 1.0 for each name, with the models in turns."""
    samples = [json.dumps([sample_of(model)]).encode() for model in models]
    for i, name in enumerate(names):
        changed: Mapping[str, bytes] = {MODEL: models[i % len(models)], "samples.json": samples[i % len(models)]}
        yield write_version(files, store, name, "1.0", lambda _, changed=changed: changed)  # type: ignore[misc]
