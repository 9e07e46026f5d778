"""One load test from start to stop: a stack of its own, load, figures, thresholds, a report.

Exit code 1 if a threshold is missed or the stack does not start.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from loadtest import machine, stages
from loadtest.generator import Generator, Target
from loadtest.processes import machine_busy_seconds
from loadtest.questions import bodies
from loadtest.report import write_report
from loadtest.shapes import SHAPES
from loadtest.stack import CommandFailed, CpuMeter, Stack, marctl, running_stack
from marctl.stack.state import State

SAMPLE_EVERY_S = 1.0
FINISH_TIMEOUT_S = 60.0
WARM_UP_SEED = 999_983
"""Not one that is likely to be asked for: questions of the warm-up must not be those of the run."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest/run.sh", description=__doc__)
    what = parser.add_argument_group("what is loaded")
    what.add_argument("--versions", nargs="+", default=["mcqa/1.0"], help="versions that are served; the first's model")
    what.add_argument("--state", type=Path, help="a stack that runs already (marctl up --state), in place of a new one")
    what.add_argument("--no-gateway", action="store_true", help="straight to TorchServe")
    what.add_argument("--up", default="", metavar="OPTIONS", help="more options of marctl up, as one word")
    load = parser.add_argument_group("load")
    load.add_argument("--users", type=int, default=64, help="closed loop, by Locust")
    load.add_argument("--rate", type=float, help="open loop: requests a second")
    load.add_argument("--shape", choices=SHAPES, default="steady")
    load.add_argument("--seconds", type=float, default=60.0)
    load.add_argument("--warm-up", type=float, default=10.0, metavar="SECONDS", help="not measured")
    load.add_argument("--seed", type=int, default=0)
    load.add_argument("--questions", type=Path, metavar="FILE", help="JSONL, in place of made questions")
    load.add_argument("--repeats", type=float, default=0.0, metavar="SHARE", help="of requests that repeat one")
    load.add_argument("--explain-share", type=float, default=0.0, metavar="SHARE", help="of users that want reasons")
    load.add_argument("--ready", type=int, help="requests encoded before the start; else 1,500 for each second")
    limits = parser.add_argument_group("thresholds")
    limits.add_argument("--min-rps", type=float)
    limits.add_argument("--max-p99-ms", type=float)
    limits.add_argument("--max-errors", type=int, help="requests without a good answer")
    parser.add_argument("--out", type=Path, help="folder of the report; else one by date in loadtest/reports")
    return parser


class Sampler(threading.Thread):
    """Processor seconds and server counts, every second."""

    def __init__(self, stack: Stack, model: str, pids: dict[str, list[int]]) -> None:
        super().__init__(daemon=True)
        self.stack = stack
        self.model = model
        self.meter = CpuMeter(pids)
        self.busy = machine_busy_seconds()
        self.first = self.last = self._counts()
        self.rows: list[dict[str, Any]] = []
        self.ending = threading.Event()
        self.started = time.time()

    def run(self) -> None:
        while not self.ending.wait(SAMPLE_EVERY_S):
            self._look()

    def finish(self) -> None:
        self.ending.set()
        self.join()
        self._look()

    def _look(self) -> None:
        cpu = self.meter.used() | {"whole machine": machine_busy_seconds() - self.busy}
        with suppress(OSError):  # a page that is late is missing from the plot, nothing else
            self.last = self._counts()
        self.rows.append({"second": time.time() - self.started, "cpu_s": cpu, "counts": self.last})

    def _counts(self) -> stages.Counts:
        return stages.torchserve_counts(self.stack, self.model)


def load_command(asked: argparse.Namespace, url: str, model: str, outcomes: Path) -> list[str]:
    """Locust, or the open-loop generator, as a process of its own."""
    ready = asked.ready or round(1500 * asked.seconds)
    common = ["--seed", str(asked.seed), "--repeats", str(asked.repeats), "--ready", str(ready)]
    common += ["--shape", asked.shape, "--outcomes", str(outcomes)]
    common += ["--questions", str(asked.questions)] if asked.questions else []
    if asked.rate:
        generator = [sys.executable, "-m", "loadtest.generator", f"{url}/predictions/{model}"]
        return [*generator, "--rate", str(asked.rate), "--seconds", str(asked.seconds), *common]
    locust = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", url, "--headless"]
    locust += ["--users", str(asked.users), "--run-time", f"{asked.seconds:g}s", "--only-summary"]
    locust += ["--loglevel", "WARNING", "--exit-code-on-error", "0", "--model", model]
    # What is under way at the end is waited for: cut off, the slowest requests would be missing from the figures.
    locust += ["--stop-timeout", f"{FINISH_TIMEOUT_S:g}s"]
    return [*locust, "--explain-share", str(asked.explain_share), *common]


def measure(asked: argparse.Namespace, stack: Stack) -> dict[str, Any]:
    """Warm up, load, and gather all figures."""
    model = asked.versions[0].split("/")[0]
    stack = Stack(stack.state, stack.marctl("status"))
    url = stack.torchserve if asked.no_gateway or not stack.status.get("gateway") else stack.gateway
    if asked.warm_up:
        tell(f"warming up for {asked.warm_up:g} s")
        target = Target.of(f"{url}/predictions/{model}")
        Generator(target, bodies(WARM_UP_SEED, ready=10_000)).closed(asked.users, asked.warm_up)
    pids = stack.pids()
    running = State(stack.state).running()
    if running is not None and running.redis is not None and running.redis.pid:
        pids["redis"] = [running.redis.pid]
    pids = {name: [pid for pid in group if pid] for name, group in pids.items()}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        outcomes, errors = Path(folder) / "outcomes.json", Path(folder) / "errors.log"
        tell(f"loading {url} for {asked.seconds:g} s")
        command = load_command(asked, url, model, outcomes)
        gateway_before = stages.settled_envoy_counts(stack, model)
        sampler = Sampler(stack, model, pids)
        with errors.open("wb") as log:
            generator = subprocess.Popen(command, cwd=machine.PROJECT, stdout=subprocess.DEVNULL, stderr=log)
        try:
            sampler.meter.add("load generator", generator.pid)
            sampler.start()
            generator.wait()
            sampler.finish()
        finally:
            stop(generator)
        gateway = stages.difference(stages.settled_envoy_counts(stack, model), gateway_before)
        if not outcomes.exists():
            words = errors.read_text(errors="replace").strip()[-1000:]
            raise CommandFailed(f"the load generator ended with code {generator.returncode}: {words}")
        found = json.loads(outcomes.read_text())
    if "explanations" in found:  # of them and predictions the gateway's listener has one count
        gateway = {name: value for name, value in gateway.items() if not name.startswith("gateway_")}
    counts = stages.difference(sampler.last, sampler.first) | gateway
    return {
        "summary": found["summary"],
        "seconds": found["seconds"],
        "samples": shifted(sampler.rows, sampler.started - found["started"]),
        "explanations": found.get("explanations"),
        "cpu_s_per_1000": per_thousand(sampler.rows[-1]["cpu_s"], found["summary"]),
        "gateway_requests": round(gateway["gateway_requests"]) if "gateway_requests" in gateway else None,
        "mean_batch": round(counts["batched"] / counts["batches"], 2) if counts.get("batches") else None,
        "stages": [asdict(stage) for stage in stages.stages(found["summary"]["mean_ms"], counts)],
    }


def shifted(rows: list[dict[str, Any]], offset_s: float) -> list[dict[str, Any]]:
    """Samples by the load's clock: the generator prepares its questions before that starts."""
    moved = [row | {"second": round(row["second"] + offset_s, 2)} for row in rows]
    return [row for row in moved if row["second"] > -SAMPLE_EVERY_S]


def per_thousand(cpu_s: dict[str, float], summary: dict[str, Any]) -> dict[str, float]:
    """Processor seconds per 1,000 requests, by process. The generator's start does not count, only its run."""
    n_requests = max(summary["requests"], 1)
    found = {name: round(seconds / n_requests * 1000, 4) for name, seconds in cpu_s.items() if name != "whole machine"}
    return found | {"load generator": summary["generator_cpu_s_per_1000"]}


def checks(asked: argparse.Namespace, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every threshold that was given, and whether it holds."""
    limits = [
        ("rps", ">=", asked.min_rps),
        ("p99_ms", "<=", asked.max_p99_ms),
        ("errors", "<=", asked.max_errors),
    ]
    return [
        {
            "figure": figure,
            "must be": f"{sign} {limit:g}",
            "is": summary[figure],
            "holds": (summary[figure] >= limit if sign == ">=" else summary[figure] <= limit)
            and summary["requests"] > summary["errors"],
        }
        for figure, sign, limit in limits
        if limit is not None
    ]


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what was started is stopped; Ctrl-C does so in a script, too."""

    def end(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    asked = arguments().parse_args()
    out = asked.out or machine.PROJECT / "loadtest" / "reports" / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    with interruptible():
        try:
            if asked.state:
                running: Any = nullcontext(Stack(asked.state, marctl(asked.state, "status")))
            else:
                tell(f"starting a stack with {', '.join(asked.versions)}")
                running = running_stack(
                    asked.versions, *(["--no-gateway"] if asked.no_gateway else []), *asked.up.split()
                )
            with running as stack:
                found = measure(asked, stack)
        except KeyboardInterrupt:
            tell("stopped")
            return 130
        except (CommandFailed, psutil.Error, ValueError) as err:
            tell(f"error: {err}")
            return 1
    options = {name: str(value) for name, value in vars(asked).items() if value not in (None, "", 0.0, False)}
    held = checks(asked, found["summary"])
    content = {"machine": machine.describe(), "options": options, "checks": held, **found}
    page = write_report(out, content)
    sys.stdout.write(json.dumps({"report": str(page), **found["summary"], "cpu_s_per_1000": found["cpu_s_per_1000"]}))
    sys.stdout.write("\n")
    for check in held:
        tell(f"{'holds ' if check['holds'] else 'MISSED'} {check['figure']} {check['must be']}: it is {check['is']}")
    return 0 if all(check["holds"] for check in held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
