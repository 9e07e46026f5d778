"""Processor time per question on one core, of engines side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean, median

from marctl.export.engines import Engine
from marctl.export.rows import Feeds

ROUNDS = 5
QUESTIONS = 40
"""Asked in each round, one by one."""


def milliseconds(engines: Sequence[Engine], feeds: Sequence[Feeds]) -> list[float]:
    """Of processor time per question, for each engine: the median of rounds in which they take turns."""
    asked = [feeds[i * len(feeds) // QUESTIONS] for i in range(QUESTIONS)]  # evenly over all of them
    for engine in engines:
        for rows in asked:
            engine.run(rows)
    rounds = [[timed(engine, asked) for engine in engines] for _ in range(ROUNDS)]
    return [median(found) for found in zip(*rounds, strict=True)]


def timed(engine: Engine, asked: Sequence[Feeds]) -> float:
    """Of this process, over all its threads."""
    spent = []
    for rows in asked:
        began = time.process_time()
        engine.run(rows)
        spent.append(time.process_time() - began)
    return 1000 * mean(spent)
