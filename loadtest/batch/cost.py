"""What a batch job costs beside its model alone, and beside one client that asks the same over HTTP.

    python -m loadtest.batch.cost --rows mcqa/1.0=20000 mcqa/2.0=4000 embed/1.0=6000 credit/1.0=200000

Of each version, on the same rows, in turn: `ceiling`, the archive's own `predict` on ready questions in one process,
and there, too, what a job's units add to it (ceiling.py); `batch`, the command `marctl batch`; and `http`, a client
that sends 8 instances a request, few enough to go with the small ones, over 16 connections to a stack with a worker per
core and no cache. `credit` is asked without http. Processor seconds are per 1,000 rows;
of the batch job those that the units tell, and those of all its processes. `start` is a job of one row whose model is
nothing: what Ray and the command cost alone. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.batch.jobs import finish
from loadtest.batch.rows import WRITERS
from loadtest.generator import Generator, Target
from loadtest.stack import ARCHIVES, PROJECT, CpuMeter, running_stack
from marctl.batch.archive import extract
from tests.batch_archives import doubling_archive

INSTANCES, CONNECTIONS = 8, 16
WARM_UP_S, SECONDS = 4.0, 20.0
DEFAULT = ["mcqa/1.0=20000", "mcqa/2.0=4000", "embed/1.0=6000", "credit/1.0=200000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=DEFAULT, metavar="VERSION=ROWS")
    parser.add_argument("--no-http", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cost-") as work:
        start(Path(work) / "start")
        for asked in options.rows:
            version, _, rows = asked.partition("=")
            folder = Path(work) / version.replace("/", "-")
            measure(folder, version, int(rows), http=not options.no_http and not version.startswith("credit/"))


def start(folder: Path) -> None:
    folder.mkdir()
    pq.write_table(pa.table({"value": [1]}), folder / "row.parquet")
    done = finish(doubling_archive(folder), [folder / "row.parquet"], folder / "out")
    tell("start", "doubling", seconds=done.seconds, cpu_s=done.cpu_s)


def measure(folder: Path, version: str, rows: int, *, http: bool) -> None:
    folder.mkdir()
    model = version.partition("/")[0]
    archive = ARCHIVES / f"{version.replace('/', '-')}.mar"
    path = folder / "rows.parquet"
    WRITERS[model](path, rows)
    extract(archive, folder / "root")
    found = ceiling(folder / "root", path, *version.split("/"))
    tell("ceiling", version, **found)
    done = finish(archive, [path], folder / "out", "--key", "id")
    if http:
        tell("http", version, **over_http(version, path))
    in_units = done.manifest["cpu_seconds"] / rows * 1000
    tell(
        "batch",
        version,
        rows_per_s=rows / done.seconds,
        cpu_s_per_1000=in_units,
        over_ceiling=in_units / found["cpu_s_per_1000"],
        all_cpu_s_per_1000=sum(done.cpu_s.values()) / rows * 1000,
        seconds=done.seconds,
        cpu_s=done.cpu_s,
        peak_mib=done.peak_mib,
    )


def ceiling(root: Path, rows: Path, model: str, version: str) -> dict[str, float]:
    env = {**os.environ, "PYTHONPATH": f"{root}:{PROJECT}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "loadtest.batch.ceiling", str(rows), model, version]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def over_http(version: str, rows: Path) -> dict[str, float]:
    model = version.partition("/")[0]
    workers = len(os.sched_getaffinity(0))
    with running_stack([version], "--workers", str(workers), "--no-redis") as stack:
        target = Target.of(f"{stack.gateway}/v1/models/{model}:predict", marker=b'"predictions"')
        bodies = endless(rows)
        Generator(target, bodies).closed(CONNECTIONS, WARM_UP_S)
        meter = CpuMeter(stack.pids())
        summary = Generator(target, bodies).closed(CONNECTIONS, SECONDS).summary()
        asked = summary["requests"] * INSTANCES
        cpu = {f"cpu_{name}": 1000 * value / asked for name, value in meter.used().items()}
    return {"rows_per_s": summary["rps"] * INSTANCES, "errors": summary["errors"], **cpu}


def endless(rows: Path) -> Iterator[bytes]:
    table = pq.read_table(rows).drop_columns("id").to_pylist()
    plain = [{name: value for name, value in row.items() if value is not None} for row in table]
    while True:
        stream = iter(plain)
        while part := list(islice(stream, INSTANCES)):
            yield json.dumps({"instances": part}).encode()


def tell(what: str, version: str, **figures: Any) -> None:
    short = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"what": what, "version": version, **short}), flush=True)


if __name__ == "__main__":
    main()
