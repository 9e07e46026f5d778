"""What the model costs without any server: batches of 32 requests through an archive's own code, in this process.

    cd extracted-archive && python -m loadtest.compare.ceiling SECONDS

Run by the comparison with the extracted archive first on the path, so that `handlers` is the archive's copy. Prints one
JSON line: questions a second, processor seconds per 1,000, and the median milliseconds of a question asked alone.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median

import yaml

from loadtest.questions import bodies
from marctl_handlers.archive import load
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline

BATCH_SIZE = 32
N_READY = 20_000
N_ALONE = 300


def main() -> None:
    seconds = float(sys.argv[1])
    model = json.loads(Path("MAR-INF/MANIFEST.json").read_text())["model"]
    config = yaml.safe_load(Path(model["configFile"]).read_text())
    pipeline = load(Path.cwd(), Model(model["modelName"], model["modelVersion"]), config["handler"])
    stream = bodies(seed=11, ready=N_READY)
    n_asked = 0
    for limit_s in (seconds / 5, seconds):  # the first is to warm up
        n_asked = 0
        cpu, start = time.process_time(), time.perf_counter()
        while time.perf_counter() - start < limit_s:
            batch = [Request(body, "x") for body in islice(stream, BATCH_SIZE)]
            replies = pipeline.answer(batch)
            assert all(reply.code == 200 for reply in replies)
            n_asked += len(batch)
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - start
    alone_ms = [asked_alone_ms(pipeline, body) for body in islice(stream, N_ALONE)]
    found = {"rps": round(n_asked / wall_s, 1), "cpu_s_per_1000": round(cpu_s / n_asked * 1000, 3)}
    print(json.dumps(found | {"single_p50_ms": round(median(alone_ms), 2)}))


def asked_alone_ms(pipeline: Pipeline, body: bytes) -> float:
    start = time.perf_counter()
    pipeline.answer([Request(body, "x")])
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
