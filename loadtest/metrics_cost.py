"""What the figures cost: a worker's processor time for each batch, and that of whoever serves the page, beside all of
a stack's processor time.

    python -m loadtest.metrics_cost --seconds 15

Prints one JSON line. The worker's share is what a batch's figures take (in a process of its own, without a model) of
what the batch takes of Envoy, Java, Redis and the worker (from a stack of mcqa 1.0 under load, at 64 connections and at
one). The page is read as Prometheus reads it, `--scrapes` times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import count
from typing import Any

import psutil
import requests

from loadtest.generator import Generator, Target
from loadtest.questions import bodies
from loadtest.stack import CpuMeter, Stack, cpu_seconds, running_stack
from loadtest.stages import difference, torchserve_counts
from marctl.stack.state import State

MODEL, VERSION = "mcqa", "mcqa/1.0"
SIZES = (1, 8, 32)
SCRAPE_EVERY_S = 15.0
OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
COUNTING = """
import json, sys, time
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.schema import Choice
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.torchserve.metrics import WorkerMetrics, reserve

class Guessing(MultipleChoice):
    def predict(self, questions, deadline):
        return [CHOICE for _ in questions]
    def cost(self, questions):
        return 0

CHOICE = Choice([0.030669, 0.969097, 0.000234], False)
BODY = b'{"question": "What do people use to cut bread?", "choices": ["a pillow", "a knife", "a cloud"]}'

def request(i):
    headers = {"x-assignment": "split", "x-request-id": f"request-{i}"}
    return Request(BODY, f"request-{i}", headers=headers, queue_ms=i / 3, batch_ms=i / 9)

class NoLog:
    # Both ways: what the prediction log takes is no part of it.
    def add(self, record):
        pass
    def totals(self):
        return {}

def seconds(answer, size, rounds=3000):
    batch = [request(i) for i in range(size)]
    used = time.thread_time()
    for _ in range(rounds):
        answer(batch)
    return (time.thread_time() - used) / rounds

reserve()
pipeline = Pipeline(Guessing(Guessing.settings_type(task="multiple_choice")), Model("mcqa", "1.0"))
pipeline.log = NoLog()
found = {}
for size in map(int, sys.argv[1:]):
    pipeline.watcher = None
    bare = min(seconds(pipeline.answer, size) for _ in range(3))
    metrics = WorkerMetrics("mcqa", "1.0", pipeline)
    found[size] = min(seconds(lambda batch: metrics.watch(pipeline.answer, batch), size) for _ in range(3)) - bare
print(json.dumps(found))
"""


def counting_seconds() -> dict[int, float]:
    """Processor seconds that the figures of one batch take, by its size."""
    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": folder, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", COUNTING, *map(str, SIZES)]
        told = json.loads(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    return {int(size): seconds for size, seconds in told.items()}


def of_size(by_size: dict[int, float], size: float) -> float:
    """On a straight line through the smallest and the largest batch."""
    low, high = SIZES[0], SIZES[-1]
    return by_size[low] + (by_size[high] - by_size[low]) * (size - low) / (high - low)


def under_load(stack: Stack, connections: int, seconds: float, seed: int, by_size: dict[int, float]) -> dict[str, Any]:
    """One load, and the figures' share of what it took."""
    generator = Generator(Target.of(f"{stack.gateway}/predictions/{MODEL}"), bodies(seed, ready=20_000))
    before, meter = torchserve_counts(stack, MODEL), CpuMeter(stack.pids())
    summary = generator.closed(connections, seconds).summary()
    used, counts = sum(meter.used().values()), difference(torchserve_counts(stack, MODEL), before)
    size = counts["batched"] / counts["batches"]
    figures_s = of_size(by_size, size)
    return {
        "connections": connections,
        "rps": summary["rps"],
        "batch_size": round(size, 2),
        "batch_cpu_ms": round(used / counts["batches"] * 1000, 3),
        "figures_us": round(figures_s * 1e6, 1),
        "share": round(figures_s / (used / counts["batches"]), 5),
    }


def page_cost(stack: Stack, scrapes: int) -> dict[str, Any]:
    """Of one page, in processor time of whoever puts it together and whoever is asked for it."""
    reconciler = State(stack.state).reconciler()
    assert reconciler is not None
    pids = stack.pids()
    processes = [psutil.Process(pid) for pid in (reconciler.pid, *pids["envoy"], *pids["java"])]
    before = sum(map(cpu_seconds, processes))
    for _ in range(scrapes):
        page = requests.get(f"{stack.gateway}/metrics", headers=OPEN_METRICS, timeout=10).text
    each_s = (sum(map(cpu_seconds, processes)) - before) / scrapes
    return {
        "series": sum(not line.startswith("#") for line in page.splitlines()),
        "cpu_ms": round(each_s * 1000, 2),
        "share_of_a_processor": round(each_s / SCRAPE_EVERY_S, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What the figures cost.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--scrapes", type=int, default=50)
    asked = parser.parse_args()
    by_size, seeds = counting_seconds(), count(1)
    with running_stack([VERSION]) as stack:
        Generator(Target.of(f"{stack.gateway}/predictions/{MODEL}"), bodies(next(seeds))).closed(8, 3.0)  # warm up
        loads = [under_load(stack, number, asked.seconds, next(seeds), by_size) for number in (64, 1)]
        page = page_cost(stack, asked.scrapes)
    of_batch = {size: round(seconds * 1e6, 1) for size, seconds in by_size.items()}
    print(json.dumps({"figures_us_by_batch_size": of_batch, "loads": loads, "page": page}))


if __name__ == "__main__":
    main()
