"""What the settings of serving give and cost: batches, delays, workers and threads of a version, Envoy's threads.

    python -m loadtest.serving
    python -m loadtest.serving mcqa/2.0 --only served delay-2 2-workers --rounds 5

Each variant is a stack of its own without Redis; all are started before the first round, and take turns in every round.
Loads: 64 connections in a closed loop; one connection; 100 requests a second, open loop. One JSON line per variant,
medians over the rounds; processor seconds are those at 64 connections.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.generator import Generator, Target
from loadtest.questions import bodies
from loadtest.shapes import poisson_times
from loadtest.stack import CommandFailed, CpuMeter, Stack, running_stack

Figures = dict[str, float]
CONNECTIONS, RATE = 64, 100.0
READY = 20_000


@dataclass(frozen=True)
class Variant:
    """`recipe` is merged into the version's, `gateway` is the content of `--gateway-config`."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    gateway: Mapping[str, Any] = field(default_factory=dict)


def batches_of(size: int) -> Variant:
    return Variant({"batching": {"batch_size": size}})


def delay_of(ms: int) -> Variant:
    return Variant({"batching": {"max_delay_ms": ms}})


VARIANTS = {
    "served": Variant(),
    "delay-2": delay_of(2),
    "delay-5": delay_of(5),
    "batch-8": batches_of(8),
    "batch-16": batches_of(16),
    "batch-64": batches_of(64),
    "2-workers": Variant({"workers": 2}),
    "2-threads": Variant({"threads": 2}),
    "envoy-2-threads": Variant(gateway={"threads": 2}),
}


def one_round(stack: Stack, model: str, seconds: float, seeds: count[int]) -> Figures:
    """Every load once; no question comes twice."""

    def generator() -> Generator:
        return Generator(Target.of(f"{stack.gateway}/predictions/{model}"), bodies(next(seeds), ready=READY))

    many_asked = generator()
    meter = CpuMeter(stack.pids())
    many = many_asked.closed(CONNECTIONS, seconds).summary()
    used = {name: value for name, value in meter.used().items() if value}
    single = generator().closed(1, seconds / 2).summary()
    paced = generator().open(poisson_times(RATE, seconds)).summary()
    per_1000 = {f"cpu_{name}": 1000 * value / many["requests"] for name, value in used.items()}
    return {
        "rps": many["rps"],
        "p50_ms": many["p50_ms"],
        "p99_ms": many["p99_ms"],
        **per_1000,
        "single_p50_ms": single["p50_ms"],
        "paced_p50_ms": paced["p50_ms"],
        "paced_p99_ms": paced["p99_ms"],
        "errors": many["errors"] + single["errors"] + paced["errors"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Settings of serving compared, each as a stack of its own.")
    parser.add_argument("version", nargs="?", default="mcqa/1.0", metavar="MODEL/VERSION")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a load, half of it at one connection")
    asked = parser.parse_args()
    model = asked.version.split("/")[0]
    seeds = count(1)
    found: dict[str, list[Figures]] = {name: [] for name in asked.only}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        stacks = {}
        for name in asked.only:
            variant = VARIANTS[name]
            gateway = folder / f"{name}.yaml"
            gateway.write_text(json.dumps(dict(variant.gateway)))  # JSON is YAML, too
            options = ("--no-redis", "--gateway-config", str(gateway))
            stacks[name] = opened.enter_context(running_stack([asked.version], *options, recipe=variant.recipe))
            print(f"{name} is up", file=sys.stderr)
        for stack in stacks.values():  # Java compiles
            Generator(Target.of(f"{stack.gateway}/predictions/{model}"), bodies(next(seeds))).closed(CONNECTIONS, 5.0)
        for number in range(asked.rounds):
            for name, stack in stacks.items():
                found[name].append(one_round(stack, model, asked.seconds, seeds))
                print(f"round {number + 1}, {name}: {found[name][-1]['rps']:.0f} answers a second", file=sys.stderr)
    for name, rounds in found.items():
        figures = {key: round(median(each[key] for each in rounds), 3) for key in rounds[0] if key != "errors"}
        print(json.dumps({"variant": name, **figures, "errors": sum(each["errors"] for each in rounds)}))
    return 1 if any(each["errors"] for rounds in found.values() for each in rounds) else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except CommandFailed as err:
        raise SystemExit(f"error: {err}") from None
