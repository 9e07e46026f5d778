"""What the model costs without any server: batches of 32 requests through an archive's own task, in this process.

    cd extracted-archive && python -m loadtest.compare.ceiling SECONDS

Run by the comparison with the extracted archive first on the path, so that `handlers` is the archive's copy. Prints one
JSON line: questions a second, processor seconds per 1,000.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path

import yaml

from handlers.loading import load_task
from handlers.task import Request
from loadtest.questions import bodies

BATCH_SIZE = 32
N_READY = 20_000


def main() -> None:
    seconds = float(sys.argv[1])
    model = json.loads(Path("MAR-INF/MANIFEST.json").read_text())["model"]
    config = yaml.safe_load(Path(model["configFile"]).read_text())
    task = load_task(Path.cwd(), model["modelName"], model["modelVersion"], config["handler"])
    stream = bodies(seed=11, ready=N_READY)
    n_asked = 0
    for limit_s in (seconds / 5, seconds):  # the first is to warm up
        n_asked = 0
        cpu, start = time.process_time(), time.perf_counter()
        while time.perf_counter() - start < limit_s:
            batch = [Request(body, "x") for body in islice(stream, BATCH_SIZE)]
            replies = task.answer(batch)
            assert all(reply.code == 200 for reply in replies)
            n_asked += len(batch)
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - start
    print(json.dumps({"rps": round(n_asked / wall_s, 1), "cpu_s_per_1000": round(cpu_s / n_asked * 1000, 3)}))


if __name__ == "__main__":
    main()
