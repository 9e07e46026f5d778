"""What the model alone costs: a file's rows as ready questions through an archive's own `predict`, in this process.

    cd extracted-archive && PYTHONPATH=.:PROJECT python -m loadtest.batch.ceiling ROWS.parquet

Prints one JSON line: rows a second and processor seconds per 1,000, of one process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import yaml

from handlers.archive import load
from handlers.core.messages import Model

AT_ONCE = 512
"""As many as a unit asks at once."""


def main() -> None:
    root, model = Path.cwd(), json.loads(Path("MAR-INF/MANIFEST.json").read_text())["model"]
    handler = yaml.safe_load((root / model["configFile"]).read_text())["handler"]
    pipeline = load(root, Model(model["modelName"], model["modelVersion"]), handler)
    rows = pq.read_table(sys.argv[1]).drop_columns("id").to_pylist()
    if (root / "model" / "features.json").is_file():
        rows = [{"features": row} for row in rows]
    else:
        rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    questions = msgspec.convert(rows, list[pipeline.task.question_type])  # type: ignore[name-defined]
    pipeline.predict(questions[:AT_ONCE])  # warm
    cpu, start = time.process_time(), time.perf_counter()
    for i in range(0, len(questions), AT_ONCE):
        pipeline.predict(questions[i : i + AT_ONCE])
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - start
    print(json.dumps({"rows_per_s": len(rows) / wall_s, "cpu_s_per_1000": cpu_s / len(rows) * 1000}))


if __name__ == "__main__":
    main()
