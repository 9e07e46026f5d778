"""What the prediction log costs a worker: processor time per answer, on the path of the request and beside it.

    python -m loadtest.log_cost --records 50000

Prints one JSON line. A Redis of its own is started and stopped; answers come in batches with a pause after each, as
from a model that computes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from handlers.core.settings import Log
from handlers.core.task import Request
from handlers.redis.link import RedisLink
from handlers.redis.log import PREDICTIONS, PredictionLog
from handlers.tasks.multiple_choice.task import Answer, Question
from scripts.stack import redis_server
from scripts.stack.state import State

BATCH, PAUSE_S = 32, 0.01
ASKED = Question("What do people use to cut bread?", ("a pillow", "a knife", "a cloud"))
HEADERS = {"x-user-id": "ann"}
REQUEST = Request(b"x" * 120, "0f6f8a2e-7d2c-4f5e-9d0e-2a4f5e9d0e2a", header=HEADERS.get)
ANSWER = Answer(REQUEST.id, "mcqa", "2.0", 1, "a knife", 0.969097, [0.030669, 0.969097, 0.000234], False, 5.2)


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
    """Log as many answers as a busy worker would, and see what its two threads used."""
    client = redis_server.connect(url)
    client.flushall()
    empty = client.info("memory")["used_memory"]
    link = RedisLink(url, reply_timeout_s=1.0)
    link.wait_closed(5.0)
    log = PredictionLog(Log(input=keep), "mcqa", "2.0", "d" * 64, link)
    path, everything = time.thread_time(), time.process_time()
    for _ in range(records // BATCH):
        for _ in range(BATCH):
            log.add(REQUEST, REQUEST.id, ASKED, ANSWER)
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
        finally:
            redis_server.stop(state, server)
    print(json.dumps({"batch": BATCH, "pause_ms": PAUSE_S * 1000, "costs": costs}))


if __name__ == "__main__":
    main()
