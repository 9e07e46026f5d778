"""Measurements of online features; each prints a JSON line per figure.

    python -m loadtest.features lookup    in process: a batch's features from Redis, beside redis-py's pipeline
    python -m loadtest.features added     a whole stack: requests that name a customer, beside those that bring it all
    python -m loadtest.features broken    a whole stack under load while the store is frozen, and after it was killed
    python -m loadtest.features push      rows a second into the store
    python -m loadtest.features all --json FILE

The model is a small one of XGBoost over ten stored features. Rounds take turns, so that what the machine does meanwhile
touches all alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import redis

from loadtest.generator import Generator, Target
from loadtest.measurements import Figures, Measure, measure_and_tell
from loadtest.shapes import poisson_times
from loadtest.stack import FREE_PORTS, MARCTL, PROJECT, CpuMeter, Stack, marctl
from marctl.features.push import Push
from marctl.features.table import Table
from marctl.stack import redis_server
from marctl.stack.redis_server import FEATURES
from marctl.stack.state import Redis, State
from marctl_handlers.features import Features, Specification, fit, resolve_table, specification_of
from marctl_handlers.features.stored import StoredForm
from marctl_handlers.redis.features import REPLY_TIMEOUT_S, Store
from marctl_handlers.redis.link import RedisLink

CUSTOMERS = 20_000
N_FEATURES = 10
BATCHES = (1, 8, 32)
CONNECTIONS = 64
RATE = 100.0
NAME, VERSION = "scored", "1.0"


def specification() -> Specification:
    customer = {"name": "customer", "key": "customer:{customer}"}
    features = [
        {
            "name": f"feature_{i}",
            "type": "number",
            "range": [-100, 100],
            "default": 0.0,
            "entity": customer,
            "freshness_s": 86_400,
        }
        for i in range(N_FEATURES)
    ]
    return specification_of(features)


def customers() -> pa.Table:
    rng = np.random.default_rng(1)
    columns = {f"feature_{i}": rng.normal(0, 10, CUSTOMERS).round(3).clip(-100, 100) for i in range(N_FEATURES)}
    return pa.table({"customer": np.arange(CUSTOMERS), **columns})


@contextmanager
def filled_store(folder: Path) -> Iterator[Redis]:
    state = State(folder)
    state.create()
    server = redis_server.start(state, folder, instance=FEATURES)
    try:
        fill(server.url, folder)
        yield server
    finally:
        redis_server.stop(state, server, FEATURES)


def fill(url: str, folder: Path) -> Figures:
    from pyarrow import parquet

    path = folder / "customers.parquet"
    parquet.write_table(customers(), path)
    entity = specification().entities["customer"]
    with redis_server.connect(url, 30.0) as client:
        done = Push(client, Table(path, specification(), entity, None), None).run(lambda _: None)
    return {"rows": done.rows, "features": N_FEATURES, "seconds": done.seconds}


def lookup(seconds: float, rounds: int) -> Iterator[Figures]:
    """Per batch: time on the clock and of this process's processor; both ways give the same rows."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder, filled_store(Path(folder)) as server:
        link = RedisLink(server.url, REPLY_TIMEOUT_S)
        link.wait_available(5.0)
        store = Store(specification(), link)
        form = StoredForm(specification().stored("customer"))
        client = redis.Redis.from_url(server.url)

        def by_pipeline(ids: Sequence[int]) -> list[Any]:
            calls = client.pipeline(transaction=False)
            for customer in ids:
                calls.hmget(f"customer:{customer}", form.fields)
            now = time.time()
            return [form.fresh(texts, now) for texts in calls.execute()]

        def by_link(ids: Sequence[int]) -> list[Any]:
            return list(store.complete([({}, {"customer": customer}) for customer in ids]))

        assert by_link(range(32)) == by_pipeline(range(32))
        for _ in range(rounds):
            for size in BATCHES:
                for way, fetch in (("ours", by_link), ("redis-py", by_pipeline)):
                    yield {"batch": size, "way": way, **timed(fetch, size, seconds / 6), "failures": link.failures}


def timed(fetch: Callable[[Sequence[int]], list[Any]], size: int, seconds: float) -> Figures:
    took, cpu, ended = [], time.process_time(), time.monotonic() + seconds
    draw = np.random.default_rng(2)
    while time.monotonic() < ended:
        ids = draw.integers(0, CUSTOMERS, size).tolist()
        began = time.perf_counter()
        fetch(ids)
        took.append(time.perf_counter() - began)
    cpu = time.process_time() - cpu
    p50, p99 = np.quantile(took, [0.5, 0.99]) * 1e6
    return {
        "batches": len(took),
        "p50_us": round(float(p50), 1),
        "p99_us": round(float(p99), 1),
        "cpu_us": round(cpu / len(took) * 1e6, 1),
    }


@contextmanager
def scoring_stack() -> Iterator[Stack]:
    """A stack with one small model, and all customers in its store."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        model_files(folder)
        options = ["--features", str(folder / "features.yaml"), "--recipes", str(folder / "recipes")]
        command = ["build", "--from", str(folder / "model.json"), "--name", NAME, "--version", VERSION, *options]
        subprocess.run(
            [*MARCTL, *command, "--store", str(folder / "store")], cwd=PROJECT, check=True, stdout=sys.stderr
        )
        state = folder / "state"
        try:
            where = ["--recipes", str(folder / "recipes"), "--store", str(folder / "store")]
            stack = Stack(state, marctl(state, "up", *where, *FREE_PORTS, "--detach"))
            stack.status = stack.marctl("status")
            fill(str(stack.status["features"]), folder)
            yield stack
        finally:
            subprocess.run([*MARCTL, "down", "--state", str(state)], cwd=PROJECT, capture_output=True, check=False)


def model_files(folder: Path) -> None:
    import xgboost

    table = customers()
    fitted = fit(specification(), table)
    features = Features(fitted)
    x = features.encode(resolve_table(features, table))
    y = (x[:, 0] + x[:, 1] * x[:, 2] / 10 > 0).astype(np.float32)
    options = {"objective": "binary:logistic", "max_depth": 4, "seed": 1, "nthread": 1}
    xgboost.train(options, xgboost.DMatrix(x, y), 50).save_model(folder / "model.json")
    (folder / "features.yaml").write_bytes(msgspec.yaml.encode(fitted))


def requests_of(way: str, seed: int) -> Iterator[bytes]:
    """Without end; every one computed anew, because no two bring the same first feature."""
    draw = np.random.default_rng(seed)
    rows = customers().drop(["customer"]).to_pylist() if way == "features" else []
    while True:
        customer, own = int(draw.integers(CUSTOMERS)), round(float(draw.normal(0, 10)), 6)
        if way == "entity":
            yield json.dumps({"entity": {"customer": customer}, "features": {"feature_0": own}}).encode()
        else:
            yield json.dumps({"features": {**rows[customer], "feature_0": own}}).encode()


def added(seconds: float, rounds: int) -> Iterator[Figures]:
    with scoring_stack() as stack:
        target = Target.of(f"{stack.gateway}/predictions/{NAME}")
        for seed in range(rounds):
            for way in ("features", "entity"):
                found = Generator(target, requests_of(way, seed)).open(poisson_times(RATE, seconds)).summary()
                yield {"way": way, "load": f"{RATE:g}/s", **found}
            for way in ("features", "entity"):
                meter = CpuMeter(stack.pids())
                found = Generator(target, requests_of(way, seed)).closed(CONNECTIONS, seconds).summary()
                used = {name: round(s / found["requests"] * 1000, 4) for name, s in meter.used().items()}
                yield {"way": way, "load": f"{CONNECTIONS} connections", **found, "cpu_s_per_1000": used}


def broken(seconds: float, rounds: int) -> Iterator[Figures]:
    """Open loop: latency counts from the moment at which a request was meant to go out."""
    with scoring_stack() as stack:
        target = Target.of(f"{stack.gateway}/predictions/{NAME}")

        def loaded(middle: Callable[[], None] | None) -> Figures:
            times = poisson_times(RATE, seconds)
            stream = requests_of("entity", 1)
            return (
                Generator(target, stream)
                .open(times if middle is None else calling(times, seconds / 2, middle))
                .summary()
            )

        store = psutil.Process(stack.status["features_pid"])
        for _ in range(rounds):
            yield {"way": "usual", **loaded(None)}
            yield {"way": "frozen in the middle", **loaded(store.suspend)}
            yield {"way": "frozen", **loaded(None)}
            store.resume()
            time.sleep(6.0)  # the workers look again every five seconds at least
        yield {"way": "killed in the middle", **loaded(store.kill)}


def calling(times: Iterator[float], at: float, action: Callable[[], None]) -> Iterator[float]:
    """The same times; the action happens when the first one after `at` is taken."""
    done = False
    for due in times:
        if due >= at and not done:
            done = True
            action()
        yield due


def push(seconds: float, rounds: int) -> Iterator[Figures]:
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="loadtest-") as folder, filled_store(Path(folder)) as server:
            with redis_server.connect(server.url) as client:
                client.execute_command("FLUSHALL", "SYNC")
                before = client.info("memory")["used_memory"]
                found = fill(server.url, Path(folder))
                used = client.info("memory")["used_memory"] - before
            yield {**found, "rows_s": round(found["rows"] / found["seconds"]), "bytes_a_row": round(used / CUSTOMERS)}


COMMANDS: dict[str, Measure] = {"lookup": lookup, "added": added, "broken": broken, "push": push}


def main() -> int:
    measure_and_tell("python -m loadtest.features", "Measure online features.", COMMANDS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
