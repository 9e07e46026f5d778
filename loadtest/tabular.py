"""What a row of a table costs, in process and through the gateway, by runtime, beside a plain loop on the same rows.

    python -m loadtest.tabular
    python -m loadtest.tabular --rounds 5 --rows 3200 --seconds 10 --no-gateway
    python -m loadtest.tabular --mlserver venv/bin/python

The table is made: nine numbers and four categories, a tenth of the cells missing. On it are trained, and saved as users
save them: 200 trees of depth 4 by XGBoost, 200 of 15 leaves by LightGBM and a logistic regression by scikit-learn (both
as ONNX), and a network of two layers of 64 by PyTorch.

In process, one thread, the variants in turn in every round:

- `NAME-ours`: the archive's handler on batches of 32 requests, from JSON to JSON;
- `NAME-plain-1`, `-plain-32`: json.loads, a pandas DataFrame, scikit-learn's ColumnTransformer with the same steps, the
  model's own library, json.dumps; so many rows at a time;
- `transform-…`: the features of 32 rows alone; `explain-…`: one explanation.

Then each served version through the gateway at 64 connections in a closed loop, without a cache, and the XGBoost model
by MLServer, which is sent encoded rows. One JSON line per variant: medians over the rounds; processor seconds, so that
other processes matter little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import requests
import torch

from loadtest.generator import Generator, Target
from loadtest.stack import CpuMeter, running_stack
from marctl.build.adopt import adopt
from marctl.build.lone_file import ModelFile
from marctl.stack.ports import free_port
from marctl_handlers.archive import pipeline_of
from marctl_handlers.core.memory import keep_memory
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.features import Features, Specification, fit, resolve_table, specification_of, write_features
from marctl_handlers.features.tables import rows_of
from marctl_handlers.tasks import find_task

NUMBERS, CATEGORIES = 9, {"home": 6, "marital": 5, "records": 2, "job": 4}
TRAINING_ROWS, BATCH, CONNECTIONS, WARM_UP_S, READY, READY_S = 3_000, 32, 64, 5.0, 40_000, 120.0
Json = dict[str, Any]
TREES: Json = {"n_estimators": 200, "n_jobs": 1}
Work = Callable[[], Any]


@dataclass(frozen=True)
class Trained:
    """A model as its own library has it, and the file that it was saved to."""

    predict: Callable[[Any], Any]
    """From encoded float32 rows to the event's probability."""
    file: Path
    settings: Json


def table(seed: int, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    found: Json = {f"x{i}": rng.lognormal(5, 1, rows).round(2) for i in range(NUMBERS)}
    for i in range(NUMBERS):
        found[f"x{i}"][rng.random(rows) < 0.1] = np.nan
    found |= {name: rng.choice([f"{name} {i}" for i in range(count)], rows) for name, count in CATEGORIES.items()}
    return pd.DataFrame(found)


def targets(rows: pd.DataFrame) -> Any:
    filled = np.log(rows[[f"x{i}" for i in range(NUMBERS)]].fillna(150).to_numpy())
    risk = filled[:, 0] - filled[:, 1] + 0.3 * filled[:, 2] * filled[:, 3] / 5 + (rows["job"] == "job 1")
    return (risk > np.median(risk)).astype(np.int64).to_numpy()


def specification() -> Specification:
    log = {"kind": "log", "shift": 1}
    number = {"type": "number", "range": [0, 1e6], "missing": "median", "transform": [log, "standardise"]}
    category = {"type": "category", "missing": "most_frequent", "transform": "one_hot"}
    names = [f"x{i}" for i in range(NUMBERS)]
    return specification_of([{"name": n, **number} for n in names] + [{"name": n, **category} for n in CATEGORIES])


def preprocessor(rows: pd.DataFrame) -> Any:
    """The same steps by scikit-learn."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    numbers = make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), SimpleImputer(strategy="median"))
    categories = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    names = [f"x{i}" for i in range(NUMBERS)]
    return ColumnTransformer([("numbers", numbers, names), ("categories", categories, list(CATEGORIES))]).fit(rows)


def train(folder: Path, x: Any, y: Any) -> dict[str, Trained]:
    return {
        name: one(folder, x, y)
        for name, one in (("xgboost", xgboost), ("lightgbm", lightgbm), ("logistic", logistic), ("network", network))
    }


def xgboost(folder: Path, x: Any, y: Any) -> Trained:
    from xgboost import XGBClassifier

    model = XGBClassifier(max_depth=4, **TREES).fit(x, y)
    model.save_model(folder / "xgboost.json")
    return Trained(lambda rows: model.predict_proba(rows)[:, 1], folder / "xgboost.json", {})


def lightgbm(folder: Path, x: Any, y: Any) -> Trained:
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = LGBMClassifier(num_leaves=15, verbose=-1, **TREES).fit(x, y)
    inputs = [("input", FloatTensorType([None, x.shape[1]]))]
    path = folder / "lightgbm.onnx"
    path.write_bytes(convert_lightgbm(model, initial_types=inputs, zipmap=False).SerializeToString())
    return Trained(lambda rows: np.asarray(model.predict_proba(rows))[:, 1], path, {})


def logistic(folder: Path, x: Any, y: Any) -> Trained:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(x, y)
    path = folder / "logistic.onnx"
    path.write_bytes(to_onnx(model, x[:1], options={"zipmap": False}, target_opset=17).SerializeToString())
    return Trained(lambda rows: model.predict_proba(rows)[:, 1], path, {})


def network(folder: Path, x: Any, y: Any) -> Trained:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(x.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(y).float()
    for _ in range(100):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = folder / "network.pt"
    torch.jit.save(torch.jit.trace(model.eval(), inputs[:2]), str(path))

    def predict(rows: Any) -> Any:
        with torch.inference_mode():
            return torch.sigmoid(model(torch.from_numpy(rows))[:, 0]).numpy()

    return Trained(predict, path, {"output": "logit"})


def ours(pipeline: Pipeline, bodies: Sequence[bytes]) -> Work:
    def work() -> Any:
        replies = []
        for start in range(0, len(bodies), BATCH):
            batch = [Request(body, str(i)) for i, body in enumerate(bodies[start : start + BATCH])]
            replies += pipeline.answer(batch)
        return [json.loads(reply.body)["prediction"] for reply in replies[:BATCH]]

    return work


def plain(prepare: Any, columns: Sequence[str], model: Trained, bodies: Sequence[bytes], size: int) -> Work:
    def work() -> Any:
        answers = []
        for start in range(0, len(bodies), size):
            rows = [json.loads(body)["features"] for body in bodies[start : start + size]]
            encoded = prepare.transform(pd.DataFrame(rows, columns=columns)).astype(np.float32)
            answers += [json.dumps({"prediction": float(share)}) for share in model.predict(encoded)]
        return [json.loads(answer)["prediction"] for answer in answers[:BATCH]]

    return work


def loaded(folder: Path, version: str, *, explain: bool = False) -> Pipeline:
    from marctl.build.recipe import read_version

    read = read_version(folder / version / "1.0")
    section = read.handler | ({"explanations": {}} if explain else {})
    task = find_task("tabular")
    pipeline = pipeline_of(
        task, folder / version / "1.0" / "model", Model(version, "1.0"), task.settings_type.load(section), "cpu"
    )
    pipeline.warm_up()
    return pipeline


def explaining(pipeline: Pipeline, body: bytes, **options: Any) -> Work:
    asked = json.dumps(json.loads(body) | {"explain": options}).encode()
    return lambda: [pipeline.answer([Request(asked, str(i), explain=True)]) for i in range(BATCH)]


def transforms(features: Features, prepare: Any, rows: Sequence[Json]) -> dict[str, Work]:
    columns = [f.name for f in features.features]
    return {
        "transform-ours": lambda: features.encode(features.resolve(rows)),
        "transform-pandas-scikit-learn": lambda: prepare.transform(pd.DataFrame(rows, columns=columns)),
    }


def in_process(folder: Path, models: dict[str, Trained], features: Features, prepare: Any, asked: Any) -> None:
    """`asked`: the parser's rounds and rows."""
    torch.set_num_threads(1)
    keep_memory()
    rows = rows_of(table(1, asked.rows), features.specification)
    bodies = [json.dumps({"features": row}).encode() for row in rows]
    columns = [f.name for f in features.features]
    works: dict[str, tuple[Work, int]] = {}
    for name, model in models.items():
        works[f"{name}-ours"] = ours(loaded(folder, name), bodies), len(bodies)
        works[f"{name}-plain-1"] = plain(prepare, columns, model, bodies[:BATCH], 1), BATCH
        works[f"{name}-plain-32"] = plain(prepare, columns, model, bodies, BATCH), len(bodies)
    for name, work in transforms(features, prepare, rows[:BATCH]).items():
        works[name] = work, BATCH
    trees, net = (loaded(folder, name, explain=True) for name in ("xgboost", "network"))
    works["explain-xgboost-tree-shap"] = explaining(trees, bodies[0]), BATCH
    works["explain-network-shapley-32-orders"] = explaining(net, bodies[0]), BATCH
    spent = measured(works, asked.rounds)
    for name, (cpu, clock) in spent.items():
        tell(variant=name, cpu_s_per_1000=cpu, rows_per_s=1 / clock)
    for name in models:
        difference = np.abs(np.subtract(works[f"{name}-ours"][0](), works[f"{name}-plain-32"][0]())).max()
        tell(variant=f"{name}-ours beside plain", largest_difference=float(difference))


def measured(works: dict[str, tuple[Work, int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Of each, processor seconds per 1,000 and seconds per one; medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, (work, count) in works.items():
            began, cpu_began = time.monotonic(), time.process_time()
            work()
            if number:  # the first one warms up
                cpu, clock = time.process_time() - cpu_began, time.monotonic() - began
                found[name].append((1000 * cpu / count, clock / count))
    return {name: tuple(map(median, zip(*pairs, strict=True))) for name, pairs in found.items()}


def through_the_gateway(folder: Path, names: Sequence[str], spec: Specification, rounds: int, seconds: float) -> int:
    """Returns how many requests failed."""
    errors = 0
    for name in names:
        with running_stack([f"{name}/1.0"], "--no-redis", source=folder) as stack:
            target = Target.of(f"{stack.gateway}/predictions/{name}")
            errors += loaded_by(target, lambda seed: stream(seed, spec), stack.pids(), rounds, seconds)
    return errors


def loaded_by(
    target: Target, stream: Callable[[int], Iterator[bytes]], pids: dict[str, list[int]], rounds: int, seconds: float
) -> int:
    """Tell medians at 64 connections; returns how many requests failed."""
    figures: list[dict[str, float]] = []
    Generator(target, iter(list(stream(2)))).closed(CONNECTIONS, WARM_UP_S)  # Java compiles
    for number in range(rounds):
        bodies = list(stream(3 + number))
        meter = CpuMeter(pids)
        summary = Generator(target, iter(bodies)).closed(CONNECTIONS, seconds).summary()
        cpu = {f"cpu_{part}": 1000 * used / summary["requests"] for part, used in meter.used().items()}
        figures.append({key: summary[key] for key in ("rps", "p50_ms", "p99_ms", "errors")} | cpu)
    tell(variant=f"{target.path}, served", **{k: median(each[k] for each in figures) for k in figures[0]})
    return int(sum(each["errors"] for each in figures))


def through_mlserver(python: Path, model: Path, features: Features, rounds: int, seconds: float) -> int:
    """The XGBoost model by MLServer's own runtime, which is sent encoded rows; returns how many requests failed."""
    http, grpc, metrics = (free_port() for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="mlserver-") as work:
        folder = Path(work)
        shutil.copyfile(model, folder / "model.json")
        batching = {"max_batch_size": BATCH, "max_batch_time": 0.002}
        implementation = {"implementation": "mlserver_xgboost.XGBoostModel", "parameters": {"uri": "./model.json"}}
        ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "host": "127.0.0.1"}
        (folder / "settings.json").write_text(json.dumps({**ports, "parallel_workers": 0, "debug": False}))
        (folder / "model-settings.json").write_text(json.dumps({"name": "xgboost", **implementation, **batching}))
        command = [str(python), "-m", "mlserver.cli.main", "start", str(folder)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as ours
        server = subprocess.Popen(command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            target = Target.of(f"http://127.0.0.1:{http}/v2/models/xgboost/infer", marker=b'"outputs"')
            wait_for(f"http://127.0.0.1:{http}/v2/models/xgboost/ready")
            return loaded_by(
                target, lambda seed: encoded_stream(seed, features), {"mlserver": [server.pid]}, rounds, seconds
            )
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"error: no answer from {url}")
        time.sleep(0.5)


def encoded_stream(seed: int, features: Features) -> Iterator[bytes]:
    """Rows as the model reads them, in the V2 protocol."""
    for row in features.encode(resolve_table(features, table(seed, READY))):
        tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row.tolist()}
        yield json.dumps({"inputs": [tensor]}).encode()


def stream(seed: int, spec: Specification) -> Iterator[bytes]:
    return (json.dumps({"features": row}).encode() for row in rows_of(table(seed, READY), spec))


def tell(**figures: Any) -> None:
    short = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    sys.stdout.write(json.dumps(short) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Rows of a table: processor seconds per 1,000, and rows a second.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_600, help="of a round, in process")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round through the gateway")
    parser.add_argument("--no-gateway", action="store_true")
    parser.add_argument(
        "--mlserver", type=Path, metavar="PYTHON", help="of an environment with mlserver and mlserver-xgboost"
    )
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # of the exporters, and of TorchScript
    with tempfile.TemporaryDirectory(prefix="tabular-") as work:
        folder = Path(work)
        rows = table(0, TRAINING_ROWS)
        features = Features(fit(specification(), rows))
        x, y = features.encode(resolve_table(features, rows)), targets(rows)
        models = train(folder, x, y)
        write_features(features.specification, folder)
        rows.to_parquet(folder / "rows.parquet")
        for name, model in models.items():
            source = ModelFile(model.file, folder / "features.json", folder / "rows.parquet")
            adopt(source, name, "1.0", folder / "recipes", **model.settings)
        in_process(folder / "recipes", models, features, preprocessor(rows), asked)
        if asked.no_gateway:
            return 0
        failed = through_the_gateway(
            folder / "recipes", list(models), features.specification, asked.rounds, asked.seconds
        )
        if asked.mlserver:
            failed += through_mlserver(asked.mlserver, models["xgboost"].file, features, asked.rounds, asked.seconds)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
