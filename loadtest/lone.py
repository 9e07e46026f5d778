"""Where the milliseconds of a lone question go: one connection, one question after the other, no cache.

    python -m loadtest.lone
    python -m loadtest.lone mcqa/2.0 --rounds 5 --seconds 4

The model's archive is asked in process, and stacks without Redis are, one for each delay of a batch
(`max_delay_ms`), all in turns. The first table has the median milliseconds of a question and the processor milliseconds
that each process spent on it, the second what the way through the gateway is made of; both are of the best round, for
whatever else the machine does only adds. In process the milliseconds are the thread's processor time.
What a core loses that sleeps between two questions shows in the rows with pauses and with cores that are kept awake.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from statistics import median

import yaml
from rich.console import Console
from rich.table import Table

from loadtest.generator import Generator, Target
from loadtest.questions import Stream, bodies
from loadtest.shapes import even_times
from loadtest.stack import ARCHIVES, CommandFailed, CpuMeter, Stack, running_stack
from loadtest.stages import difference, torchserve_counts
from marctl_handlers.archive import load
from marctl_handlers.core.memory import keep_memory
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline

DELAYS_MS = (1, 2)
PAUSE_S = 0.006
"""About what a question takes; the worker has nothing to do for so long."""
SLOW_RATE = 50.0
READY, WARM_UP_S, CONSOLE_WIDTH = 3000, 4.0, 130
FIGURES_S = 1.5
"""Workers write their figures once a second."""
SPINNER = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
BACK_TO_BACK, AFTER_SPIN, AFTER_SLEEP = "in process, back to back", "in process, pauses that spin", "in process, pauses"
SERVER, GATEWAY, AWAKE, SLOW = "TorchServe alone", "gateway", "gateway, cores kept awake", "gateway, 50 a second"
PROCESSES = ("worker", "java", "envoy")
Figures = dict[str, float]
Found = dict[tuple[str, str], list[Figures]]
"""By the delay and the way, a round after the other."""
seeds = count(1)


def questions() -> Stream:
    """Never the same ones twice."""
    return bodies(next(seeds), ready=READY)


@contextmanager
def in_process(version: str) -> Iterator[Pipeline]:
    """The version's archive, loaded as a worker does it."""
    model, number = version.split("/")
    with tempfile.TemporaryDirectory(prefix="lone-") as folder:
        with zipfile.ZipFile(ARCHIVES / f"{model}-{number}.mar") as packed:
            packed.extractall(folder)
        config = yaml.safe_load(Path(folder, "model-config.yaml").read_text())
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        keep_memory()
        pipeline = load(Path(folder), Model(model, number), config["handler"])
        pipeline.warm_up()
        yield pipeline


def spin() -> None:
    end = time.perf_counter() + PAUSE_S
    while time.perf_counter() < end:
        pass


PAUSES: Mapping[str, Callable[[], None]] = {
    BACK_TO_BACK: lambda: None,
    AFTER_SPIN: spin,
    AFTER_SLEEP: lambda: time.sleep(PAUSE_S),
}


def ask(pipeline: Pipeline, seconds: float, pause: Callable[[], None]) -> Figures:
    """One question after the other, in this process."""
    stream, took_ms = questions(), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        request = Request(next(stream), "x")
        pause()
        start = time.thread_time()
        [reply] = pipeline.answer([request])
        took_ms.append((time.thread_time() - start) * 1000)
        if reply.code != 200:
            raise CommandFailed(f"{reply.code} {reply.body!r}")
    return {"ms": median(took_ms), "worker": sum(took_ms) / len(took_ms)}


@contextmanager
def cores_awake() -> Iterator[None]:
    """On each core a process that computes nothing, for as long as nobody else wants the core."""
    taskset = [["taskset", "--cpu-list", str(core), sys.executable, "-c", SPINNER] for core in os.sched_getaffinity(0)]
    spinners = [subprocess.Popen(command) for command in taskset]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def load_stack(stack: Stack, version: str, url: str, seconds: float, rate: float | None = None) -> Figures:
    """One connection, which asks as soon as it has its answer, or `rate` times a second."""
    model = version.split("/")[0]
    before, meter = torchserve_counts(stack, model), CpuMeter(stack.pids())
    generator = Generator(Target.of(url), questions())
    outcomes = generator.open(even_times(rate, seconds), 1) if rate else generator.closed(1, seconds)
    found, used = outcomes.summary(), meter.used()
    time.sleep(FIGURES_S)
    counts = difference(torchserve_counts(stack, model), before)
    if found["errors"]:
        raise CommandFailed(f"{found['errors']} of {found['requests']} requests failed: {found['codes']}")
    used["worker"] = used[version.replace("/", " ")]
    return {
        "ms": found["p50_ms"],
        **{name: 1000 * used[name] / found["requests"] for name in PROCESSES},
        "handler": 1000 * counts["handler_s"] / counts["batches"],
        "queue": counts["queue_us"] / counts["requests"] / 1000,
    }


def measure_stack(stack: Stack, version: str, seconds: float) -> Iterator[tuple[str, Figures]]:
    """Every way to one stack, in turn."""
    gateway = f"{stack.gateway}/predictions/{version.split('/')[0]}"
    yield SERVER, load_stack(stack, version, f"{stack.torchserve}/predictions/{version}", seconds)
    yield GATEWAY, load_stack(stack, version, gateway, seconds)
    with cores_awake():
        yield AWAKE, load_stack(stack, version, gateway, seconds)
    yield SLOW, load_stack(stack, version, gateway, seconds, SLOW_RATE)


def measure(version: str, rounds: int, seconds: float) -> Found:
    found: Found = {}
    with ExitStack() as opened:
        pipeline = opened.enter_context(in_process(version))
        stacks = {}
        for delay_ms in DELAYS_MS:
            recipe = {"batching": {"max_delay_ms": delay_ms}}
            stack = opened.enter_context(running_stack([version], "--no-redis", recipe=recipe))
            stacks[f"{delay_ms} ms"] = Stack(stack.state, stack.marctl("status"))
            load_stack(stack, version, f"{stack.gateway}/predictions/{version.split('/')[0]}", WARM_UP_S)
        for number in range(rounds):
            for way, pause in PAUSES.items():
                found.setdefault(("", way), []).append(ask(pipeline, seconds, pause))
            for delay, stack in stacks.items():
                for way, figures in measure_stack(stack, version, seconds):
                    found.setdefault((delay, way), []).append(figures)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return found


def best(rounds: Sequence[Figures]) -> Figures:
    return min(rounds, key=lambda figures: figures["ms"])


def parts(delay: str, figures: Mapping[tuple[str, str], Figures]) -> Figures:
    """What the way through the gateway is made of, in ms."""
    model, server, whole = (figures[key] for key in (("", BACK_TO_BACK), (delay, SERVER), (delay, GATEWAY)))
    gateway = whole["ms"] - server["ms"]
    return {
        "the model, as in process": model["ms"],
        "its handler, more than that: colder caches, TorchServe's context": whole["handler"] - model["ms"],
        "TorchServe's queue: the delay, and Java's wake-ups": whole["queue"],
        "TorchServe's HTTP, its socket to the worker and back": whole["ms"]
        - gateway
        - whole["queue"]
        - whole["handler"],
        "the gateway": gateway,
    }


def print_tables(found: Found) -> None:
    figures = {key: best(rounds) for key, rounds in found.items()}
    console = Console(width=CONSOLE_WIDTH)
    table = Table("batch delay", "way", "p50 ms", *(f"{name}: CPU ms" for name in PROCESSES))
    for (delay, way), row in figures.items():
        table.add_row(
            delay, way, f"{row['ms']:.2f}", *(f"{row[name]:.2f}" if name in row else "" for name in PROCESSES)
        )
    console.print(table)
    delays = [f"{delay_ms} ms" for delay_ms in DELAYS_MS]
    shares = [parts(delay, figures) for delay in delays]
    table = Table("part of the way", *(f"{delay}: ms" for delay in delays))
    for name in shares[0]:
        table.add_row(name, *(f"{share[name]:.2f}" for share in shares))
    table.add_row("all", *(f"{sum(share.values()):.2f}" for share in shares))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.lone", description="Where a lone question's time goes.")
    parser.add_argument("version", nargs="?", default="mcqa/1.0", metavar="MODEL/VERSION")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    asked = parser.parse_args()
    print_tables(measure(asked.version, asked.rounds, asked.seconds))
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except CommandFailed as err:
        raise SystemExit(f"error: {err}") from None
