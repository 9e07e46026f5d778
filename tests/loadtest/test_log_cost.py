from __future__ import annotations

from pathlib import Path

from loadtest.log_cost import BATCH, measure
from tests.redis_servers import TestRedis


def test_every_answer_is_logged_and_its_cost_told(tmp_path: Path) -> None:
    server = TestRedis(tmp_path)
    try:
        cost = measure(server.url, "whole", 10 * BATCH)
    finally:
        server.stop()
    assert (cost.records, cost.dropped) == (10 * BATCH, 0)
    assert min(cost.on_path_us, cost.beside_us, cost.redis_bytes) > 0
