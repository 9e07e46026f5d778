"""Measurements of the front gateway on real stacks; each prints a table and, with --json, every figure.

    python -m loadtest.gateway cost       what Envoy adds to TorchServe alone: latency and processor time
    python -m loadtest.gateway shadows    whether a hung or a dead shadow is felt by those who are answered
    python -m loadtest.gateway failures   requests lost to killed workers and to versions that change under load
    python -m loadtest.gateway hostile    what 10,000 hostile requests do to those of others

All rounds of one command share one stack and take turns, so that what the machine does meanwhile touches all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from statistics import median
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from loadtest.gateway.hostile import attacked
from loadtest.stack import PROJECT, CpuMeter, Stack, running_stack

Figures = dict[str, Any]
VERSION, COPY = "mcqa/1.0", {"mcqa/1.1": "mcqa/1.0"}
SETTLE_S = 1.0
KILLS = 3
HOSTILE = 10_000
seeds = count(1)
TABLE_WIDTH = 120


def generator(url: str, seconds: float, **how: float) -> subprocess.Popen[str]:
    """A load generator at work; `how` is `connections` or `rate`."""
    options = [text for name, value in how.items() for text in (f"--{name}", str(value))]
    options += ["--seed", str(next(seeds))]  # what was asked in one round would be in the cache in the next
    command = [sys.executable, "-m", "loadtest.generator", url, "--seconds", str(seconds), *options]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def figures(process: subprocess.Popen[str]) -> Figures:
    out, _ = process.communicate()
    found: Figures = json.loads(out)
    return found


def cost(stack: Stack, seconds: float, rounds: int) -> Iterator[Figures]:
    """The same load on both ways in, in turn."""
    ways = {"TorchServe alone": f"{stack.torchserve}/predictions/mcqa/1.0", "the gateway": f"{stack.gateway}/predict"}
    loads: list[dict[str, float]] = [{"connections": 32}, {"connections": 64}, {"rate": 100}]
    for load in loads:
        for _ in range(rounds):
            for way, url in ways.items():
                meter = CpuMeter(stack.pids())
                found = figures(generator(url, seconds, **load))
                per_1000 = {name: used / found["requests"] * 1000 for name, used in meter.used().items()}
                yield {"load": load_text(load), "way": way, **found, **per_1000}


def load_text(load: dict[str, float]) -> str:
    [(kind, value)] = load.items()
    return f"{value} connections" if kind == "connections" else f"{value} a second"


def shadows(stack: Stack, seconds: float, rounds: int) -> Iterator[Figures]:
    """Half of what one worker can do, with copies of all of it to a version that fails in its own way."""
    copied = ("no shadow", "hung shadow", "dead shadow")
    stack.marctl("route", "split", "mcqa", "1.0=100")
    for _ in range(rounds):
        for way in copied:
            stack.marctl("route", "shadow", "mcqa", "--off" if way == "no shadow" else "1.1=100")
            with failing(stack, way):
                found = figures(generator(f"{stack.gateway}/predict", seconds, rate=100))
            yield {"load": "100 a second", "way": way, **found}


@contextmanager
def failing(stack: Stack, way: str) -> Iterator[None]:
    """The shadow's worker stopped in mid-air, or gone."""
    if way == "hung shadow":
        os.kill(stack.pids()["mcqa 1.1"][0], signal.SIGSTOP)
    if way == "dead shadow":
        scale(stack, "1.1", 0)
    try:
        yield
    finally:
        if way == "hung shadow":
            stack.kill_worker("mcqa 1.1")
        if way == "dead shadow":
            scale(stack, "1.1", 1)


def scale(stack: Stack, version: str, workers: int) -> None:
    """Behind marctl's back, which parks no version with traffic."""
    url = f"{stack.status['management']}/models/mcqa/{version}?min_worker={workers}&max_worker={workers}"
    requests.put(url, params={"synchronous": "true"}, timeout=60).raise_for_status()


def failures(stack: Stack, seconds: float, rounds: int) -> Iterator[Figures]:
    """Half of the clients on each version, each version standing in for the other's failures."""
    stack.marctl("route", "split", "mcqa", "1.1=100")
    stack.marctl("route", "fallback", "mcqa", "1.0")
    works: dict[str, Callable[[], None]] = {
        f"{KILLS} workers killed": lambda: kill_workers(stack),
        f"{rounds} swaps of versions": lambda: swap_versions(stack, rounds),
    }
    for way, work in works.items():
        load = generator(f"{stack.gateway}/predict", seconds, rate=200)
        time.sleep(SETTLE_S)
        started = time.monotonic()
        work()
        took_s = time.monotonic() - started
        found = figures(load)
        if took_s > seconds - SETTLE_S:
            print(f"{way} took {took_s:.0f} s, longer than the load; raise --seconds", file=sys.stderr)
        yield {"load": "200 a second", "way": way, **found}


def kill_workers(stack: Stack) -> None:
    for _ in range(KILLS):
        stack.kill_worker("mcqa 1.1")


def swap_versions(stack: Stack, times: int) -> None:
    """All traffic to the other version, the first one out and in again."""
    archive = next(row["archive"] for row in stack.marctl("status")["versions"] if row["version"] == "1.0")
    store = stack.marctl("status")["store"]
    stack.marctl("route", "split", "mcqa", "--default")
    for _ in range(times):
        stack.marctl("default", "mcqa", "1.1")
        stack.marctl("unregister", "mcqa", "1.0")
        stack.marctl("register", f"{store}/{archive}")
        stack.marctl("route", "split", "mcqa", "1.0=50", "1.1=50")
        stack.marctl("route", "split", "mcqa", "--default")


GATEWAY_PATHS = (
    "/predict",
    "/predictions/mcqa",
    "/v1/models/mcqa:predict",
    "/v2/models/mcqa/infer",
    "/explain",
    "/feedback",
)
TORCHSERVE_PATHS = (
    "/predictions/mcqa",
    "/predictions/mcqa/1.0",
    "/predictions/mcqa/1.0/feedback",
    "/explanations/mcqa",
)


def hostile(stack: Stack, seconds: float, rounds: int) -> Iterator[Figures]:
    """Good requests alone, and among hostile ones that go to the gateway and past it, to TorchServe."""
    good = f"{stack.gateway}/predict"
    targets = [
        *(stack.gateway + path for path in GATEWAY_PATHS),
        *(stack.torchserve + path for path in TORCHSERVE_PATHS),
    ]
    for _ in range(rounds):
        yield {"load": "100 a second", "way": "alone", **figures(generator(good, seconds, rate=100))}
        before = stack.pids()
        with attacked(targets, HOSTILE, seconds) as attack:
            found = figures(generator(good, seconds, rate=100))
        ended = sum(len(set(pids) - set(stack.pids()[name])) for name, pids in before.items())
        told = ", ".join(f"{count:,} {answer}" for answer, count in attack.answers.most_common())
        print(f"the hostile ones: {told}; processes ended: {ended}", file=sys.stderr)
        if attack.failed:
            print(f"not coped with: {dict(attack.failed.most_common())}", file=sys.stderr)
        print(f"the good ones: {found['codes']}", file=sys.stderr)
        way = f"among {attack.answers.total():,} hostile ones"
        yield {"load": "100 a second", "way": way, **found, "ended": ended}


COMMANDS = {
    "cost": (cost, 15.0, 5),
    "shadows": (shadows, 30.0, 3),
    "failures": (failures, 420.0, 20),
    "hostile": (hostile, 100.0, 1),
}
"""Name to what it does, the seconds of one load and its rounds."""
COLUMNS = ("requests", "errors", "rps", "p50_ms", "p99_ms", "max_ms")


def summary(rows: Sequence[Figures]) -> list[Figures]:
    """Per load and way: counts added up, all else by its median over the rounds."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for row in rows:
        groups.setdefault((row["load"], row["way"]), []).append(row)
    found = []
    for (load, way), group in groups.items():
        numbers = {k for k, v in group[0].items() if isinstance(v, int | float)}
        merged = {k: (sum if k in ("requests", "errors") else median)(row[k] for row in group) for k in numbers}
        found.append({"load": load, "way": way, "rounds": len(group), **merged})
    return found


def print_table(rows: Sequence[Figures]) -> None:
    costs = [name for name in ("envoy", "java", VERSION.replace("/", " ")) if name in rows[0]]
    table = Table("load", "way", *(name.replace("_", " ") for name in COLUMNS), *costs)
    table.caption = "costs in CPU-seconds per 1,000 requests" if costs else None
    for row in rows:
        cells = [f"{row[name]:,}" if name in ("requests", "errors") else f"{row[name]:,.1f}" for name in COLUMNS]
        table.add_row(row["load"], row["way"], *cells, *(f"{row[name]:.3f}" for name in costs))
    Console(width=TABLE_WIDTH).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.gateway", description="Measure the front gateway.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", metavar="FILE", help="every round's figures")
    asked = parser.parse_args()
    measure, seconds, rounds = COMMANDS[asked.command]
    rows = []
    with running_stack([VERSION], copies=COPY if measure in (shadows, failures) else None) as stack:
        for row in measure(stack, asked.seconds or seconds, asked.rounds or rounds):
            rows.append(row)
            print(f"{row['way']}, {row['load']}: {row['rps']:,.0f} answers a second", file=sys.stderr)
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"rounds": rows, "summary": summary(rows)}, file, indent=2)
    print_table(summary(rows))
    return 1 if any(row["errors"] or row.get("ended") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
