"""Input files for studies: made questions, texts, and applicants for `credit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.embedding import texts
from loadtest.questions import made

AT_ONCE = 100_000
MISSING = 0.02
NUMBERS = {
    "Seniority": 8,
    "Time": 46,
    "Age": 37,
    "Expenses": 55,
    "Income": 130,
    "Assets": 5000,
    "Debt": 300,
    "Amount": 1000,
    "Price": 1400,
}
"""Features of `credit` to about what they are on average."""
CATEGORIES = {
    "Home": ("owner", "parents", "rent", "other"),
    "Marital": ("married", "single", "separated", "divorced", "widow"),
    "Records": ("no", "yes"),
    "Job": ("fixed", "freelance", "partime", "others"),
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


def applicants(path: Path, count: int) -> None:
    """Made applicants with an `id`: nine numbers, four categories, one value in fifty missing."""
    draw = np.random.default_rng(5)
    with pq.ParquetWriter(path, drawn(draw, 1, 0).schema) as writer:
        for start in range(0, count, AT_ONCE):
            writer.write_table(drawn(draw, min(AT_ONCE, count - start), start))


def drawn(draw: np.random.Generator, count: int, start: int) -> pa.Table:
    columns: dict[str, Any] = {"id": np.arange(start, start + count)}
    for name, mean in NUMBERS.items():
        values = np.minimum(draw.gamma(2, mean / 2, count).round(), 20 * mean if name != "Age" else 100)
        columns[name] = pa.array(values, mask=draw.random(count) < MISSING)
    for name, names in CATEGORIES.items():
        columns[name] = pa.array(draw.choice(names, count), mask=draw.random(count) < MISSING)
    return pa.table(columns)


WRITERS: dict[str, Callable[[Path, int], None]] = {"mcqa": questions, "embed": sentences, "credit": applicants}
