"""What a shared worker costs and gives: many small versions, of which a part is hot, beside workers of their own.

    python -m loadtest.shared --versions 1000 --hot 100 --seconds 20

XGBoost models of 100 kB to 5 MB are built into archives, registered, and asked through the gateway: the hot ones by a
Zipf distribution, cold ones one by one beside them, and one at full tilt beside the others. Then ten of them are served
by a worker each. Prints figures as it goes and one JSON line at the end. Takes ten minutes, and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from loadtest.generator import Generator, Target
from loadtest.machine import describe
from loadtest.outcomes import Outcomes, value_at
from loadtest.shapes import poisson_times
from loadtest.shared.trees import FEATURES, base_archive, row, sized_models, write_versions
from loadtest.stack import FREE_PORTS, MARCTL, PROJECT, CpuMeter, Stack, marctl

MIB = 1 << 20
SEPARATE = 10
COLD_RATE, NEIGHBOUR_RATE = 4.0, 100.0
"""Requests a second to cold versions, and of the hot ones beside them and beside a burst."""
CONNECTIONS = 32
BURST_CONNECTIONS = 64
READY = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--hot", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--memory-mb", type=int, default=1024, help="for the versions that are loaded")
    asked = parser.parse_args()
    found: dict[str, Any] = {"machine": describe(), "load_before": psutil.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="loadtest-shared-") as folder:
        models = sized_models()
        names = [f"m{i}" for i in range(asked.versions)]
        found["models"] = {"smallest_kb": len(models[0]) // 1000, "largest_kb": len(models[-1]) // 1000}
        shared, own = Path(folder) / "shared", Path(folder) / "own"
        for place, workers, some in ((shared, "shared", names), (own, 1, names[:SEPARATE])):
            place.mkdir()
            files = base_archive(place, models[0], workers)
            for _ in write_versions(files, place / "store", some, models):
                pass
        with serving(shared, {"memory_mb": asked.memory_mb}) as stack:
            found["shared"] = study_shared(stack, names, asked.hot, asked.seconds)
        with serving(own, None) as stack:
            found["own"] = study_own(stack, names[:SEPARATE], asked.seconds)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


@contextmanager
def serving(folder: Path, pool: dict[str, Any] | None) -> Iterator[Stack]:
    """A stack of a store; all of it is stopped at the end."""
    state = folder / "state"
    try:
        if pool is not None:
            settings = folder / "settings.yaml"
            settings.write_text(yaml.safe_dump({"models": {}, "shared": pool}))
            marctl(state, "state", "apply", str(settings))
        began = time.monotonic()
        where = ["--recipes", str(folder / "none"), "--store", str(folder / "store")]
        marctl(state, "up", *where, *FREE_PORTS, "--detach")
        tell("start", {"seconds": round(time.monotonic() - began, 1)})
        yield Stack(state, marctl(state, "status"))
    finally:
        subprocess.run([*MARCTL, "down", "--state", str(state)], cwd=PROJECT, capture_output=True, check=False)


def study_shared(stack: Stack, names: Sequence[str], hot: int, seconds: float) -> dict[str, Any]:
    chosen = random.Random(1).sample(names, hot)
    others = [name for name in names if name not in set(chosen)]
    found: dict[str, Any] = {"after_start": memory(stack)}
    tell("memory after start", found["after_start"])
    ask_all(stack, chosen)
    found["one_version"] = closed(stack, chosen[:1], seconds)
    tell("one version, closed loop", found["one_version"])
    found["hot"] = closed(stack, chosen, seconds)
    tell("hot versions, closed loop", found["hot"])
    found["hot_memory"] = memory(stack)
    tell("memory", found["hot_memory"])
    found["quiet"] = open_loop(stack, chosen, NEIGHBOUR_RATE, seconds)
    tell("hot versions, open loop", found["quiet"])
    found["cold"] = beside(stack, chosen, seconds, lambda: ask_cold(stack, others, seconds))
    tell("the same beside cold ones", found["cold"])
    found["burst"] = beside(stack, chosen[1:], seconds, lambda: closed(stack, chosen[:1], seconds, BURST_CONNECTIONS))
    tell("the same beside a burst of one", found["burst"])
    found["after"] = memory(stack)
    return found


def study_own(stack: Stack, names: Sequence[str], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": memory(stack)}
    tell("workers of their own, memory", found["memory"])
    found["one_version"] = closed(stack, names[:1], seconds)
    tell("one version, closed loop", found["one_version"])
    found["all"] = closed(stack, names, seconds)
    tell("all of them, closed loop", found["all"])
    return found


def stream(names: Sequence[str], seed: int = 0) -> Iterator[bytes]:
    """Distinct rows, encoded before the first is asked for; the k-th name in proportion to 1/k."""
    rng = random.Random(seed)
    drawn = rng.choices(names, [1 / (k + 1) for k in range(len(names))], k=READY)
    rows = [{name: round(abs(rng.gauss(0, 1)), 4) for name in FEATURES} for _ in drawn]
    bodies = [json.dumps({"model": name, "features": each}).encode() for name, each in zip(drawn, rows, strict=True)]
    return again_and_again(bodies)


def again_and_again(bodies: Sequence[bytes]) -> Iterator[bytes]:
    """Each time with another digit before the first number, so that the cache knows none."""
    for i in count():
        yield from (body.replace(b'"f0": ', b'"f0": %d' % (i % 9 + 1), 1) for body in bodies) if i else bodies


def target(stack: Stack) -> Target:
    return Target.of(f"{stack.gateway}/v1/predict", marker=b'"prediction"')


def closed(stack: Stack, names: Sequence[str], seconds: float, connections: int = CONNECTIONS) -> dict[str, Any]:
    """As fast as it goes, with the processor time of every part."""
    generator = Generator(target(stack), stream(names, seed=connections))
    Generator(target(stack), stream(names, seed=3)).closed(connections, 3.0)
    meter = CpuMeter(pids(stack))
    outcomes = generator.closed(connections, seconds)
    return figures(outcomes) | {"cpu_s_per_1000": per_1000(meter, outcomes)}


def open_loop(stack: Stack, names: Sequence[str], rate: float, seconds: float) -> dict[str, Any]:
    outcomes = Generator(target(stack), stream(names, seed=5)).open(poisson_times(rate, seconds, "steady"))
    return figures(outcomes)


def beside(stack: Stack, names: Sequence[str], seconds: float, other: Any) -> dict[str, Any]:
    """What hot versions feel while something else is done."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(other()))
    neighbours = subprocess.Popen(
        [sys.executable, "-m", "loadtest.shared.neighbours", stack.gateway, str(NEIGHBOUR_RATE), str(seconds), *names],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert neighbours.stdout is not None
    neighbours.stdout.readline()  # its requests are encoded
    thread.start()
    out, _ = neighbours.communicate()
    thread.join()
    return {"hot": json.loads(out), "other": done[0]}


def ask_cold(stack: Stack, names: Sequence[str], seconds: float) -> dict[str, Any]:
    """One request to each of some versions that are not loaded, a few a second."""
    taken: list[float] = []
    codes: list[int] = []
    session = requests.Session()
    session.trust_env = False
    before = loads(stack)
    deadline = time.monotonic() + seconds
    for i, name in enumerate(names):
        if time.monotonic() > deadline:
            break
        began = time.perf_counter()
        body = {"model": name, "features": row(i)}
        codes.append(session.post(f"{stack.gateway}/v1/predict", json=body, timeout=60).status_code)
        taken.append(time.perf_counter() - began)
        time.sleep(max(0.0, 1 / COLD_RATE - taken[-1]))
    n_loads, load_s = (after - b for after, b in zip(loads(stack), before, strict=True))
    ordered = sorted(taken)
    marks = {f"p{round(share * 100)}_ms": round(value_at(ordered, share) * 1000, 1) for share in (0.5, 0.99)}
    each_ms = round(load_s * 1000 / max(n_loads, 1), 1)
    return {
        "requests": len(codes),
        "errors": len(codes) - codes.count(200),
        **marks,
        "loads": n_loads,
        "load_ms": each_ms,
    }


def loads(stack: Stack) -> tuple[float, float]:
    """How many versions were loaded so far, and the seconds that it took."""
    page = requests.get(f"{stack.gateway}/metrics", timeout=30).text
    names = ("handler_shared_loads_total", "handler_shared_load_seconds_total")
    values = {line.split("{")[0]: float(line.split()[-1]) for line in page.splitlines() if line.startswith(names)}
    return values.get(names[0], 0.0), values.get(names[1], 0.0)


def ask_all(stack: Stack, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        reply = requests.post(f"{stack.gateway}/v1/predict", json={"model": name, "features": row(i)}, timeout=60)
        reply.raise_for_status()


def figures(outcomes: Outcomes) -> dict[str, Any]:
    summary = outcomes.summary()
    return {name: summary[name] for name in ("requests", "errors", "rps", "p50_ms", "p99_ms", "codes")}


def pids(stack: Stack) -> dict[str, list[int]]:
    status = stack.marctl("status")
    workers = {pid for each in (*status["versions"], *status["shared"]) for pid in each["pids"]}
    parts = {"envoy": [status["gateway_pid"]], "java": [status["pid"]], "redis": [status["redis_pid"]]}
    return parts | {"workers": sorted(workers)}


def per_1000(meter: CpuMeter, outcomes: Outcomes) -> dict[str, float]:
    return {name: round(used / len(outcomes.codes) * 1000, 3) for name, used in meter.used().items()}


def memory(stack: Stack) -> dict[str, Any]:
    """MiB of each part, shared pages in their parts (PSS); and what the shared worker says that it holds."""
    found: dict[str, Any] = {
        name: round(sum(psutil.Process(pid).memory_full_info().pss for pid in group) / MIB)
        for name, group in pids(stack).items()
    }
    keys = ("versions", "resident", "resident_mb")
    held = [{key: each[key] for key in keys} for each in stack.marctl("status")["shared"]]
    return found | {"shared": held}


def tell(what: str, content: dict[str, Any]) -> None:
    sys.stderr.write(f"{what}: {json.dumps(content)}\n")


if __name__ == "__main__":
    raise SystemExit(main())
