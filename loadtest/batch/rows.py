"""Input files and archives for studies: made questions and texts, and a table of loans with a model of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.embedding import texts
from loadtest.questions import made
from loadtest.stack import MARCTL, PROJECT

AT_ONCE = 100_000
LABELS = '["good", "bad"]'
TREES, DEPTH, TRAINED_ON = 200, 5, 20_000
NUMBERS = ("income", "amount", "duration", "savings", "debt", "age", "rate", "balance")
CATEGORIES = {
    "home": ("own", "rent", "family"),
    "job": ("clerk", "nurse", "driver", "teacher", "none"),
    "purpose": ("car", "house", "school", "holiday", "other"),
    "region": tuple(f"r{i}" for i in range(20)),
}


def questions(path: Path, count: int) -> None:
    """Made multiple-choice questions with an `id` (loadtest/questions.py)."""
    rows = (
        {"id": i, "question": one.question, "choices": one.choices, "context": one.context}
        for i, one in enumerate(islice(made(5), count))
    )
    kind = pa.schema(
        [("id", pa.int64()), ("question", pa.string()), ("choices", pa.list_(pa.string())), ("context", pa.string())]
    )
    write(path, rows, kind)


def sentences(path: Path, count: int) -> None:
    """Made texts with an `id` (loadtest/embedding.py)."""
    rows = ({"id": i, "input_text": text} for i, text in enumerate(islice(texts(5), count)))
    write(path, rows, pa.schema([("id", pa.int64()), ("input_text", pa.string())]))


def write(path: Path, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(islice(rows, AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(part, schema))


def loans(path: Path, count: int) -> None:
    """Made loans with an `id`: eight numbers, four categories, one value in a hundred missing."""
    draw = np.random.default_rng(5)
    with pq.ParquetWriter(path, drawn(draw, 1, 0).schema) as writer:
        for start in range(0, count, AT_ONCE):
            writer.write_table(drawn(draw, min(AT_ONCE, count - start), start))


def drawn(draw: np.random.Generator, count: int, start: int) -> pa.Table:
    columns: dict[str, Any] = {"id": np.arange(start, start + count)}
    for name in NUMBERS:
        values = draw.lognormal(7, 1, count).round(2)
        columns[name] = pa.array(values, mask=draw.random(count) < 0.01)
    for name, names in CATEGORIES.items():
        columns[name] = draw.choice(names, count)
    return pa.table(columns)


def loan_archive(folder: Path) -> Path:
    """A model of loans, trained on made ones, in an archive: `loans` 1.0."""
    import xgboost

    from marctl_handlers.features import Features, fit, resolve_table, specification_of

    table = drawn(np.random.default_rng(1), TRAINED_ON, 0)
    numbers = [{"name": name, "type": "number", "missing": "median", "transform": ["standardise"]} for name in NUMBERS]
    categories = [{"name": name, "type": "category", "transform": ["one_hot"]} for name in CATEGORIES]
    specification = fit(specification_of([*numbers, *categories]), table)
    features = Features(specification)
    risk = np.nan_to_num(table["amount"].to_numpy()) / (1 + np.nan_to_num(table["income"].to_numpy()))
    matrix = xgboost.DMatrix(features.encode(resolve_table(features, table)), (risk > 1).astype(int))
    options = {"objective": "binary:logistic", "max_depth": DEPTH, "seed": 1, "nthread": 1}
    folder.mkdir(parents=True, exist_ok=True)
    xgboost.train(options, matrix, TREES).save_model(folder / "model.json")
    (folder / "features.json").write_bytes(msgspec.json.encode(specification))
    command = [*MARCTL, "build", "--from", str(folder / "model.json"), "--features", str(folder / "features.json")]
    command += ["--name", "loans", "--version", "1.0", "--set", f"labels={LABELS}"]
    command += ["--recipes", str(folder / "recipes"), "--store", str(folder / "store")]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return folder / "store" / "loans-1.0.mar"


WRITERS: dict[str, Callable[[Path, int], None]] = {"mcqa": questions, "embed": sentences, "loans": loans}
