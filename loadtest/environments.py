"""What the served runtime costs in other surroundings: allocators, huge pages, threads, processes.

    python -m loadtest.environments model_store/archives/mcqa-1.0.mar
    python -m loadtest.environments ARCHIVE --jemalloc /usr/lib/x86_64-linux-gnu/libjemalloc.so.2     (libjemalloc2)

Each environment has worker processes of its own, with a model each, all loaded before the first round; those that do
not have their turn sleep. One JSON line per environment, medians over the rounds, every round with questions of its
own. `huge_mib`: memory of one worker in huge pages at the end, which shows whether it got any.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from handlers.torchserve.memory import keep_memory
from loadtest.questions import bodies
from loadtest.speed import cut, load, seconds


@dataclass(frozen=True)
class Environment:
    """What a worker runs in. `processes` work at once, each on questions of its own."""

    variables: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    processes: int = 1


def environments(jemalloc: Path | None) -> dict[str, Environment]:
    """By name. Raises ValueError if the library is not there: the loader would start the worker without it."""
    found = {
        "plain": Environment(),
        "huge-pages": Environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        "2-threads": Environment(threads=2),
        "2-processes": Environment(processes=2),
    }
    if jemalloc is None:
        return found
    if not jemalloc.is_file():
        raise ValueError(f"{jemalloc}: no such file; expected jemalloc's shared library (Debian's libjemalloc2)")
    preload = {"LD_PRELOAD": str(jemalloc)}
    keeping = "dirty_decay_ms:-1,muzzy_decay_ms:-1"
    return found | {
        "jemalloc": Environment(preload),
        "jemalloc-keeping": Environment(preload | {"MALLOC_CONF": keeping}),
        "jemalloc-huge-pages": Environment(preload | {"MALLOC_CONF": f"{keeping},thp:always"}),
    }


def work(root: Path, threads: int, seed: int, count: int, rounds: int, link: Any) -> None:
    """A worker: answers one round's questions whenever it is told to, and says what they cost."""
    keep_memory()
    task = load(root, "served", threads)
    stream = bodies(seed)
    seconds(task, cut(list(islice(stream, count))))
    asked = [cut(list(islice(stream, count))) for _ in range(rounds)]
    link.send("ready")
    for batches in asked:
        link.recv()
        link.send(seconds(task, batches))
    link.send(huge_mib())


def huge_mib() -> int:
    """Of this process."""
    page = Path("/proc/self/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^AnonHugePages: *(\d+) kB", page, re.MULTILINE))) // 1024


def start(environment: Environment, *given: Any) -> list[Any]:
    """Its workers' links, once all of them are ready."""
    context = multiprocessing.get_context("spawn")
    kept = dict(os.environ)
    os.environ |= environment.variables  # read by the loader and the allocator before the worker's first line
    links = []
    try:
        for seed in range(environment.processes):
            link, theirs = context.Pipe()
            root, *counts = given
            arguments = (root, environment.threads, seed, *counts, theirs)
            context.Process(target=work, args=arguments, daemon=True).start()
            theirs.close()
            links.append(link)
    finally:
        os.environ.clear()
        os.environ |= kept
    for link in links:
        link.recv()
    return links


def one_round(links: list[Any]) -> tuple[float, float]:
    """Processor seconds for 1,000 questions, and questions a second of all workers together."""
    for link in links:
        link.send("go")
    found = [link.recv() for link in links]
    return statistics.mean(cpu for cpu, _ in found), sum(1000 / clock for _, clock in found)


def main() -> int:
    parser = argparse.ArgumentParser(description="Allocators, huge pages, threads and processes compared.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--jemalloc", type=Path, metavar="LIBRARY", help="compare this allocator, too")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="environments; the default is all")
    parser.add_argument("--count", type=int, default=2000, help="questions of a worker in a round")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    try:
        known = environments(asked.jemalloc)
    except ValueError as err:
        parser.error(str(err))
    if unknown := set(asked.only or ()) - set(known):
        parser.error(f"no environment {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="environments-") as folder, zipfile.ZipFile(asked.archive) as archive:
        archive.extractall(folder)
        names = asked.only or list(known)
        workers = {name: start(known[name], Path(folder), asked.count, asked.rounds) for name in names}
        rounds = [{name: one_round(links) for name, links in workers.items()} for _ in range(asked.rounds)]
        for name, links in workers.items():
            cpu, rate = (statistics.median(values) for values in zip(*(found[name] for found in rounds), strict=True))
            figures = {"environment": name, "cpu_s_per_1000": round(cpu, 3), "questions_per_s": round(rate, 1)}
            sys.stdout.write(json.dumps(figures | {"huge_mib": links[0].recv()}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
