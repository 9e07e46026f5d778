"""What the prediction log costs: a worker's processor time per record, beside its path and on it, and its keeper's.

    python -m loadtest.log_cost --records 50000

Prints one JSON line. A Redis of its own is started and stopped; records come in batches with a pause after each, as
from a model that computes. The keeper's time is that of its process, at rest and at 1,000 records a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from marctl.stack import redis_server
from marctl.stack.state import State
from marctl_handlers.core.messages import Logged
from marctl_handlers.core.settings import Log
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.redis.log import PREDICTIONS, Declaration, PredictionLog
from marctl_handlers.tasks.multiple_choice.schema import LOG_COLUMNS, Question

BATCH, PAUSE_S = 32, 0.01
RATE, SECONDS = 1_000, 20.0
RECORD: dict[str, Any] = {
    "request_id": "0f6f8a2e-7d2c-4f5e-9d0e-2a4f5e9d0e2a",
    "prediction_id": "0f6f8a2e-7d2c-4f5e-9d0e-2a4f5e9d0e2a",
    "headers": {"x-user-id": "ann", "x-assignment": "split", "x-experiment": "choices-v2", "x-revision": "42"},
    "question": Question("What do people use to cut bread?", ("a pillow", "a knife", "a cloud")),
    "kept": {"prediction": 1, "confidence": 0.969097, "probabilities": [0.030669, 0.969097, 0.000234]},
    "error": None,
    "code": 200,
    "cache": None,
    "version": None,
    "queue_ms": 1.5,
    "handler_ms": 5.2,
    "size_bytes": 120,
}
KEEP = """
import sys
from pathlib import Path
from marctl.records.keeper import Keeper, connector
from marctl.records.kinds import pyarrow
folder, url = sys.argv[1:]
keeper = Keeper(Path(folder), connector(lambda: url), None, print)
keeper.attend()
print("at work", flush=True)
keeper.run()
"""


@dataclass(frozen=True)
class Cost:
    """Microseconds of processor time per record, and what one takes in Redis."""

    input: str
    records: int
    on_path_us: float
    beside_us: float
    redis_bytes: float
    dropped: int


def measure(url: str, keep: Literal["whole", "hash", "none"], records: int) -> Cost:
    """Log as many records as a busy worker would, and see what its two threads used."""
    client = redis_server.connect(url)
    client.flushall(asynchronous=False)
    empty = client.info("memory")["used_memory"]
    log = open_log(url, keep)
    path, everything = time.thread_time(), time.process_time()
    for _ in range(records // BATCH):
        for _ in range(BATCH):
            log.add(Logged(time_us=time.time_ns() // 1000, **RECORD))
        time.sleep(PAUSE_S)
    log.close()
    path, everything = time.thread_time() - path, time.process_time() - everything
    done = records // BATCH * BATCH
    held = client.info("memory")["used_memory"] - empty
    return Cost(
        input=keep,
        records=done,
        on_path_us=round(path / done * 1e6, 2),
        beside_us=round((everything - path) / done * 1e6, 2),
        redis_bytes=round(held / int(client.xlen(PREDICTIONS)), 1),
        dropped=log.dropped,
    )


def open_log(url: str, keep: Literal["whole", "hash", "none"]) -> PredictionLog:
    link = RedisLink(url, reply_timeout_s=1.0)
    link.wait_available(5.0)
    return PredictionLog(Log(input=keep), Declaration("mcqa", LOG_COLUMNS, "int"), "2.0", "d" * 64, link)


def keeper_share(url: str, folder: Path, rate: int, seconds: float = SECONDS) -> float:
    """The share of one processor that a keeper takes while so many records come each second."""
    redis_server.connect(url).flushall()
    command = [sys.executable, "-c", KEEP, str(folder), url]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        keeper, log = psutil.Process(process.pid), open_log(url, "hash")
        before, began, sent = sum(keeper.cpu_times()[:2]), time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(int(passed * rate) - sent):
                log.add(Logged(time_us=time.time_ns() // 1000, **RECORD))
                sent += 1
            time.sleep(PAUSE_S)
        used = sum(keeper.cpu_times()[:2]) - before
        log.close()
        process.kill()
    return round(used / seconds, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=50_000)
    records = parser.parse_args().records
    with tempfile.TemporaryDirectory(prefix="log-cost-") as folder:
        state = State(Path(folder) / "state")
        state.create()
        server = redis_server.start(state, Path(folder))
        try:
            kinds: tuple[Literal["whole", "hash", "none"], ...] = ("none", "hash", "whole")
            costs = [vars(measure(server.url, keep, records)) for keep in kinds]
            shares = {str(rate): keeper_share(server.url, Path(folder) / f"log-{rate}", rate) for rate in (0, RATE)}
        finally:
            redis_server.stop(state, server)
    print(json.dumps({"batch": BATCH, "pause_ms": PAUSE_S * 1000, "costs": costs, "keeper_share_by_rate": shares}))


if __name__ == "__main__":
    main()
