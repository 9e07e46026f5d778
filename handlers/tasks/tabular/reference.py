"""The model's own library over rows encoded cell by cell: the pipeline's yardstick, no code in common with it."""

from __future__ import annotations

import bisect
import json
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = Mapping[str, Any]
NAN = float("nan")


def plain_scores(folder: Path, requests: Sequence[Json]) -> NDArray[Any]:
    """What the model in a folder gives for each request, shape (rows, outputs)."""
    specification = json.loads((folder / "features.json").read_text())["features"]
    rows = np.array([plain_row(specification, request.get("features", {})) for request in requests], np.float32)
    [path] = list(folder.glob("model.*"))
    scores = {".json": by_xgboost, ".ubj": by_xgboost, ".onnx": by_onnx, ".pt": by_torch}[path.suffix](path, rows)
    return np.asarray(scores).reshape(len(rows), -1)


def by_xgboost(path: Path, rows: NDArray[Any]) -> Any:
    import xgboost

    booster = xgboost.Booster(model_file=path)
    last = booster.attr("best_iteration")
    rounds = (0, 0) if last is None else (0, int(last) + 1)
    return booster.predict(xgboost.DMatrix(rows), iteration_range=rounds, validate_features=False)


def by_onnx(path: Path, rows: NDArray[Any]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: rows})[-1]


def by_torch(path: Path, rows: NDArray[Any]) -> Any:
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        return torch.jit.load(str(path)).eval()(torch.tensor(rows)).numpy()


def plain_row(specification: Sequence[Json], given: Json) -> list[float]:
    """One row, encoded by the specification as its file has it."""
    values: dict[str, Any] = {}
    waiting = list(specification)
    while waiting:
        feature = waiting.pop(0)
        of = feature.get("derived", {}).get("of", [])
        if any(name not in values for name in of):
            waiting.append(feature)
            continue
        value = derived_value(feature, [values[name] for name in of]) if of else given.get(feature["name"])
        values[feature["name"]] = settled(feature, value)
    return [number for feature in specification for number in encoded(feature, values[feature["name"]])]


def derived_value(feature: Json, parts: Sequence[float | None]) -> float | None:
    if None in parts:
        return None
    one, *others = (float(part) for part in parts if part is not None)
    match feature["derived"]["operation"]:
        case "ratio":
            return one / others[0] if others[0] else None
        case "difference":
            return one - others[0]
        case "sum":
            return math.fsum([one, *others])
        case _:
            return math.prod([one, *others])


def settled(feature: Json, value: Any) -> Any:
    """After filling and clipping; None for a gap that is kept."""
    if value is not None and "categories" in feature and value not in feature["categories"]:
        value = None
    if value is None:
        value = feature.get("default", feature.get("fill"))
    if value is None or isinstance(value, str | bool):
        return value
    bounds = [feature.get("range", [None, None])] if feature.get("outside") == "clip" else []
    bounds += [[step["low"], step["high"]] for step in feature.get("transform", []) if step["kind"] == "clip"]
    for low, high in bounds:
        value = value if low is None else max(value, low)
        value = value if high is None else min(value, high)
    return value


def encoded(feature: Json, value: Any) -> list[float]:
    """The columns of one feature."""
    steps = {step["kind"]: step for step in feature.get("transform", [])}
    width, place = 0, None
    if "hash" in steps:
        width = steps["hash"].get("buckets", 32)
        place = None if value is None else zlib.crc32(value.encode()) % width
    elif "one_hot" in steps and "bucket" in steps:
        width = len(steps["bucket"]["edges"]) + 1
        place = None if value is None else bisect.bisect_right(steps["bucket"]["edges"], value)
    elif "one_hot" in steps:
        width = len(feature["categories"])
        place = None if value is None else feature["categories"].index(value)
    if width:
        return [float(i == place) for i in range(width)]
    if value is None:
        return [NAN]
    if "ordinal" in steps:
        return [float(feature["categories"].index(value))]
    if "bucket" in steps:
        return [float(bisect.bisect_right(steps["bucket"]["edges"], value))]
    if "log" in steps:
        value = math.log(value + steps["log"].get("shift", 0))
    if "standardise" in steps:
        value = (value - steps["standardise"]["mean"]) / steps["standardise"]["scale"]
    return [float(value)]
