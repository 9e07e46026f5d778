"""What a unit costs beside its model alone: a file's rows through an archive's own `predict` as ready questions, and
through a job's units, from the file to a committed file, in turn in one process.

    cd extracted-archive && PYTHONPATH=.:PROJECT python -m loadtest.batch.ceiling ROWS.parquet MODEL VERSION

Prints one JSON line: rows a second of `predict`, processor seconds per 1,000 of both, medians of the rounds, and the
median ratio of a round's two.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from marctl.batch.answers import schema_of
from marctl.batch.archive import describe, load
from marctl.batch.ask import Ask
from marctl.batch.folder import folder_of
from marctl.batch.job import Job
from marctl.batch.output import Output, digest_of
from marctl.batch.plan import plan, unit_rows_for
from marctl.batch.sources import scan_all
from marctl.batch.unit import CALL_ROWS, UnitRunner

ROUNDS = 3


def main() -> None:
    path, model, version = sys.argv[1:]
    root = Path.cwd()
    pipeline = load(root, model, version, "cpu", explains=False)
    with tempfile.TemporaryDirectory() as folder:
        steps = (predicting(pipeline, root, path), computing(pipeline, root, path, folder))
        for step in steps:
            step()  # warm
        rounds = [[cpu_of(step) for step in steps] for _ in range(ROUNDS)]
    began = time.perf_counter()
    steps[0]()
    rows = pq.read_metadata(path).num_rows
    told = {"rows_per_s": rows / (time.perf_counter() - began)}
    told |= {"cpu_s_per_1000": median(one[0] for one in rounds) / rows * 1000}
    told |= {"unit_cpu_s_per_1000": median(one[1] for one in rounds) / rows * 1000}
    print(json.dumps(told | {"unit_over_predict": median(one[1] / one[0] for one in rounds)}))


def cpu_of(step: Callable[[], None]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def predicting(pipeline: Any, root: Path, path: str) -> Callable[[], None]:
    rows = pq.read_table(path).drop_columns("id").to_pylist()
    if (root / "model" / "features.json").is_file():
        rows = [{"features": row} for row in rows]
    else:
        rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    questions = msgspec.convert(rows, list[pipeline.task.question_type])

    def predict() -> None:
        for i in range(0, len(questions), CALL_ROWS):
            pipeline.predict(questions[i : i + CALL_ROWS])

    return predict


def computing(pipeline: Any, root: Path, path: str, folder: str) -> Callable[[], None]:
    scanned = scan_all([path])
    source, description = scanned[0].source, describe(root, str(root))
    job = Job(
        model=pipeline.model.name,
        version=pipeline.model.version,
        digest="",
        sources=(source,),
        keys={"id": "id"},
        unit_rows=unit_rows_for(source.rows),
    )
    schema = schema_of(job, description.columns, [pa.field("id", pa.int64())])
    runner = UnitRunner(job, digest_of(job), description, Output(folder_of(folder)), schema, Ask(pipeline))
    units = plan(job, scanned)

    def compute() -> None:
        for unit in units:
            runner.run(unit)

    return compute


if __name__ == "__main__":
    main()
