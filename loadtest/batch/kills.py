"""A batch job whose processes are killed at random moments, from a seed; then its output is held against another's.

    python -m loadtest.batch.kills --kills 20 --seed 1

A job over 40,000 rows, in units of 512, runs once undisturbed. Then the same job is begun, and again and again one of
its processes gets SIGKILL: the command, an actor, or Ray's node with all actors. After each kill the same command is
run, if the killed one ended. At the end the outputs must be equal, row by row, the time of prediction aside; and of the
files that were there after a kill none may have been written again. One JSON line tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.batch.jobs import actors, finish, is_named, predictions, start, tree
from tests.batch_archives import doubling_archive

ROWS, UNIT_ROWS, PAUSE_S = 40_000, 512, 0.002
VICTIMS = ("command", "actor", "node")
WAIT_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        print(json.dumps(study(Path(folder), options.kills, random.Random(options.seed))))


def study(folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    rows = folder / "rows.parquet"
    pq.write_table(pa.table({"id": range(ROWS), "value": range(ROWS)}), rows, row_group_size=7000)
    quick = doubling_archive(folder / "quick")
    slow = doubling_archive(folder / "slow", pause_s=PAUSE_S)
    options = ("--key", "id", "--unit-rows", str(UNIT_ROWS))
    finish(quick, [rows], folder / "whole", *options)
    done: Counter[str] = Counter()
    runs = rewritten = 0
    output = folder / "killed"
    process: subprocess.Popen[str] | None = None
    while sum(done.values()) < kills and not (output / "manifest.json").exists():
        if process is None or process.poll() is not None:
            process, runs = start(slow, [rows], output, *options), runs + 1
        victim = draw.choice(VICTIMS)
        kept = written(output)
        if kill(process, victim, draw.uniform(0, 6)):
            done[victim] += 1
        rewritten += sum(written(output).get(name, stamp) != stamp for name, stamp in kept.items())
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=WAIT_S if victim == "command" else 2)
    if process is not None and process.poll() is None:
        process.communicate(timeout=WAIT_S)
    kept = written(output)
    last = finish(slow, [rows], output, *options)
    rewritten += sum(written(output)[name] != stamp for name, stamp in kept.items())
    equal = versionless(predictions(output)).equals(versionless(predictions(folder / "whole")))
    errors = (output / "errors.jsonl").read_bytes() == (folder / "whole" / "errors.jsonl").read_bytes()
    left = [p.pid for p in psutil.process_iter() if is_named(p, str(output))]
    return {
        "kills": dict(done),
        "runs": runs + 1,
        "rows": last.rows,
        "equal": equal and errors,
        "files_written_again": rewritten,
        "processes_left": len(left),
    }


def kill(process: subprocess.Popen[str], victim: str, after_s: float) -> bool:
    """End one of the job's processes once it predicts; whether there was one."""
    command = psutil.Process(process.pid)
    deadline = time.monotonic() + WAIT_S
    while process.poll() is None and not actors(command) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(after_s)
    found = {
        "command": lambda: [command],
        "actor": lambda: actors(command)[:1],
        "node": lambda: [each for each in tree(command) if is_named(each, "raylet/raylet")],
    }[victim]()
    for each in found:
        with suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)
    return bool(found) and process.poll() in (None, -signal.SIGKILL)


def written(output: Path) -> dict[str, int]:
    """Each committed file and when it was written."""
    found = {}
    for path in (output / "predictions").glob("part-*.parquet"):
        with suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


def versionless(table: pa.Table) -> pa.Table:
    """Without the archive's digest: the undisturbed run used one that does not pause."""
    return table.drop_columns(["digest"])


if __name__ == "__main__":
    main()
