"""What the autoscaler holds and costs, beside fixed numbers of workers and beside Kubernetes' rule, on one trace.

    python -m loadtest.autoscale step day --json FILE
    python -m loadtest.autoscale step --version mcqa/1.0 --high 120 --most 2

Each way has a stack of its own, one after the other, and gets the same requests at the same times, in open loop. All of
it is real but the model, unless `--version` names one: it keeps a worker for 10 ms for each question and takes no
processor time, as a model on an accelerator does, so that the numbers of workers that matter fit on two cores.
Kubernetes' rule runs in the autoscaler's own loop, on the same figures of the same stack (loadtest/autoscale/hpa.py).

A row: requests, errors; share of the requests that waited longer than the objective, and of the time in which the queue
time's p99 was over it; p99 of the answers; worker-seconds, those that start included; changes, and reversals: changes
against the one before within 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from loadtest.autoscale.traces import TRACES, Rate, times
from loadtest.generator import Generator, Target
from loadtest.machine import describe
from loadtest.outcomes import Outcomes
from loadtest.questions import bodies
from loadtest.run import interruptible
from loadtest.stack import MARCTL, PROJECT, RECIPES, CommandFailed, Stack, cpu_seconds, running_stack
from marctl.capacity.samples import Counts, Key, between, look
from marctl.core.errors import UserError
from marctl.stack.management import Management
from marctl.stack.state import State

TASK = """
import time
import msgspec
from marctl_handlers import Task

class Question(msgspec.Struct):
    number: int

class Answer(msgspec.Struct):
    prediction: int

class Waits(Task[Question, Answer]):
    def load(self, folder):
        pass

    def predict(self, questions, deadline):
        time.sleep(0.010 * len(questions))
        return [Answer(question.number) for question in questions]
"""
RECIPE: dict[str, Any] = {
    "description": "keeps a worker for 10 ms a question",
    "batching": {"batch_size": 8, "max_delay_ms": 1, "queue_size": 2000},
    "cache": False,
    "samples": [{"request": {"number": 1}, "expected": {"prediction": 1}}],
}
LOOK_S, WORKERS_S = 2.0, 0.25
REVERSAL_S = 30.0
OBJECTIVE_MS = 100.0
"""A bound of the histogram, so that the requests above it are counted exactly."""
HOLD_S = 30.0
FIXED = "fixed"


@dataclass
class Meter:
    """Looks at one version from its own thread: workers, and the queue time's p99 in each two seconds."""

    management: Management
    metrics: str
    key: Key
    workers: list[tuple[float, int]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """Seconds, and p99 of the queue time in them."""
    counts: list[Counts] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    _looked: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ending.set()
            thread.join()
            self._look()

    def _run(self) -> None:
        while not self.ending.is_set():
            with suppress(UserError):
                self.workers.append((time.monotonic(), self.management.describe(*self.key).asked))
            if time.monotonic() - self._looked >= LOOK_S:
                self._look()
            self.ending.wait(WORKERS_S)

    def _look(self) -> None:
        sample = look(self.metrics, time.monotonic())
        if sample is None or self.key not in sample.versions:
            return
        if self.counts:
            span = between(self.counts[-1], sample.versions[self.key], sample.time_s - self._looked)
            waited = span.queue_s("p99") if span is not None else None
            self.spans.append((sample.time_s - self._looked, waited or 0.0))
        self._looked = sample.time_s
        self.counts.append(sample.versions[self.key])

    def worker_seconds(self) -> float:
        return sum(before * (after_s - before_s) for (before_s, before), (after_s, _) in pairwise(self.workers))

    def over(self) -> dict[str, float]:
        """Of requests and of time, the share beyond the objective."""
        objective = OBJECTIVE_MS / 1000
        whole = between(self.counts[0], self.counts[-1], 1.0)
        assert whole is not None
        all_of_them = whole.queue[float("inf")]
        seconds = sum(each for each, _ in self.spans)
        late = sum(each for each, waited in self.spans if waited > objective)
        return {
            "requests_over": round(1 - whole.queue[objective] / all_of_them, 4),
            "time_over": round(late / seconds, 4),
        }


@contextmanager
def scaling(stack: Stack, way: str, settings: Path) -> Iterator[psutil.Process | None]:
    """The process that changes the workers, if one does."""
    name, _, window_s = way.partition(":")
    if name == FIXED:
        yield None
        return
    command = [*MARCTL, "autoscale", str(settings), "--state", str(stack.state)]
    if name.startswith("hpa-"):
        rule = [str(stack.state), str(settings), name.removeprefix("hpa-"), window_s or "300"]
        command = [sys.executable, "-m", "loadtest.autoscale.hpa", *rule]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def measure(stack: Stack, way: str, asked: argparse.Namespace, rate: Rate) -> dict[str, Any]:
    """One trace on a stack that has just started."""
    model, version = asked.name.split("/")
    settings = stack.state.parent / "autoscale.yaml"
    bounds = {"every_seconds": 3, "max": asked.most, "queue_ms": OBJECTIVE_MS, "hold_seconds": HOLD_S}
    settings.write_text(yaml.safe_dump(bounds | {"versions": {asked.name: {}}}))
    running = State(stack.state).running()
    assert running is not None
    meter = Meter(Management(running.management), running.metrics, (model, version))
    waits = asked.version is None
    stream = iter_numbers() if waits else bodies(7, ready=round(asked.high * 60))
    generator = Generator(Target.of(f"{stack.gateway}/predictions/{model}"), stream)
    with scaling(stack, way, settings) as scaler:
        time.sleep(2 * 3)  # it has looked twice
        before_s = cpu_seconds(scaler) if scaler is not None else 0.0
        with meter.running():
            outcomes = generator.open(times(rate, asked.high * 1.01, asked.seconds, seed=1))
        used_s = cpu_seconds(scaler) - before_s if scaler is not None else 0.0
    return summary(outcomes, meter) | history_of(stack) | {"scaler_cores": round(used_s / asked.seconds, 4)}


def iter_numbers() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield b'{"number": %d}' % number


def summary(outcomes: Outcomes, meter: Meter) -> dict[str, Any]:
    found = outcomes.summary()
    return {
        **{name: found[name] for name in ("requests", "errors", "codes", "p50_ms", "p99_ms", "max_ms")},
        **meter.over(),
        "worker_seconds": round(meter.worker_seconds()),
        "most_workers": max(workers for _, workers in meter.workers),
    }


def history_of(stack: Stack) -> dict[str, Any]:
    """Changes of the workers: how many, and how many against the one before."""
    rows = [row for row in stack.marctl("history")["revisions"] if row["actor"] == "autoscaler"]
    changed = [(datetime.fromisoformat(row["at"]).timestamp(), int(row["command"].split()[-1])) for row in rows]
    directions = [(at, workers - before) for (_, before), (at, workers) in pairwise([(0.0, 1), *changed])]
    reversals = sum(b * a < 0 and later - at < REVERSAL_S for (at, a), (later, b) in pairwise(directions))
    return {"changes": len(changed), "reversals": reversals, "to": [workers for _, workers in changed]}


@contextmanager
def served(asked: argparse.Namespace, workers: int) -> Iterator[Stack]:
    if asked.version is not None:
        with running_stack([asked.version], "--workers", str(workers)) as stack:
            yield stack
        return
    with tempfile.TemporaryDirectory(prefix="loadtest-waits-") as folder:
        recipe = Path(folder) / "waits" / "1.0"
        recipe.mkdir(parents=True)
        (Path(folder) / "waits.py").write_text(TASK)
        (recipe / "model.yaml").write_text(yaml.safe_dump(RECIPE | {"task": f"{folder}/waits.py"}))
        with running_stack(["waits/1.0"], "--workers", str(workers), source=Path(folder)) as stack:
            yield stack


def measured(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each trace and way."""
    for trace in asked.traces:
        rate = TRACES[trace](asked.low, asked.high, asked.seconds)
        for way in asked.ways:
            workers = int(way.partition(":")[2]) if way.startswith(FIXED) else 1
            with served(asked, workers) as stack:
                row = measure(stack, way, asked, rate)
            yield {"trace": trace, "way": way, **row, "load": round(os.getloadavg()[0], 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", choices=TRACES)
    parser.add_argument("--version", help=f"one of {RECIPES}, such as mcqa/1.0, in place of the model that waits")
    parser.add_argument("--low", type=float, default=20.0, help="requests a second")
    parser.add_argument("--high", type=float, default=300.0)
    parser.add_argument("--most", type=int, default=6, help="workers")
    parser.add_argument("--seconds", type=float, default=160.0, help="of a trace")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["autoscaler", "fixed:1", "fixed:5", "hpa-queue:300", f"hpa-queue:{HOLD_S:g}", f"hpa-busy:{HOLD_S:g}"],
        help="autoscaler, fixed:WORKERS, hpa-queue:WINDOW, hpa-busy:WINDOW (stabilisation in seconds)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all rows, also here")
    asked = parser.parse_args()
    asked.name = asked.version or "waits/1.0"
    rows: list[dict[str, Any]] = []
    try:
        with interruptible():
            for row in measured(asked):
                rows.append(row)
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
    except CommandFailed as err:
        sys.stderr.write(f"error: {err}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    if asked.json:
        asked.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
