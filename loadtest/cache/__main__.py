"""Measurements of the prediction cache; each prints a JSON line per figure.

    python -m loadtest.cache cost      in process: what a hit and a miss cost a worker and Redis
    python -m loadtest.cache streams   a whole stack: requests/s with 30 % and 90 % repeats, against one without Redis
    python -m loadtest.cache equal     a whole stack: 500 equal requests at once, and how many reach the model
    python -m loadtest.cache broken    a whole stack under load while Redis is frozen and after it was killed
    python -m loadtest.cache all --json FILE

Repeats follow Zipf's law (loadtest/questions.py). Rounds take turns, so that what the machine does meanwhile touches
all alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, repeat
from pathlib import Path

import psutil
import torch
from transformers import AutoTokenizer

from loadtest.generator import Generator, Target
from loadtest.measurements import Figures, Measure, measure_and_tell
from loadtest.outcomes import value_at
from loadtest.questions import bodies
from loadtest.shapes import poisson_times
from loadtest.stack import ARCHIVES, CpuMeter, Stack, cpu_seconds, running_stack
from marctl.records.prediction_cache import purge
from marctl.stack import redis_server
from marctl.stack.state import State
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.settings import CacheSettings
from marctl_handlers.redis.cache import Cache
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.tokenization import PairEncoder, Row

VERSION, NAME = "mcqa/1.0", "mcqa 1.0"
BATCHES = (1, 8, 32)
SHARES = (0.3, 0.9)
CONNECTIONS = 64
EQUAL = 500
ID = "0f6f8a2e-7d2c-4f5e-9d0e-2a4f5e9d0e2a"
RATE = 100.0
REPORT_S = 1.5
"""Workers report once a second."""
seeds = count(1)


class Constant:
    """A model that costs nothing, so that what is left is the way to it and back."""

    runtime = "constant"

    def run(self, rows: Sequence[Row], deadline: float) -> list[float | None]:
        return [0.0] * len(rows)

    def warm_up(self) -> None:
        pass


def cost(seconds: float, rounds: int) -> Iterator[Figures]:
    """JSON to JSON with the archive's own tokenizer; `usual` is the same without a cache."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        model = unpacked_model(Path(folder))
        state = State(Path(folder))
        state.create()
        server = redis_server.start(state, Path(folder))
        try:
            redis = psutil.Process(server.pid)
            task = MultipleChoice(TextSettings(task="multiple_choice"))
            task.encoder = PairEncoder(AutoTokenizer.from_pretrained(model, local_files_only=True), 128)
            task.model = Constant()
            pipeline = Pipeline(task, Model("mcqa", "1.0"))
            link = RedisLink(server.url)
            link.wait_available(5.0)
            cache = Cache(CacheSettings(), task, pipeline.model, "", link)
            for _ in range(rounds):
                for size in BATCHES:
                    n = round(seconds * 1000 / size) * size
                    requests = [Request(body, ID) for body in islice(bodies(next(seeds)), n)]
                    batches = [requests[i : i + size] for i in range(0, n, size)]
                    for way, used in (("usual", None), ("miss", cache), ("hit", cache)):
                        pipeline.cache = used
                        yield {"batch": size, "way": way, **timed(pipeline, batches, redis), "failures": link.failures}
        finally:
            redis_server.stop(state, server)


def unpacked_model(folder: Path) -> Path:
    """The tokenizer's files of the archive."""
    from zipfile import ZipFile

    with ZipFile(ARCHIVES / f"{VERSION.replace('/', '-')}.mar") as archive:
        names = [name for name in archive.namelist() if name.startswith("model/") and name.endswith(".json")]
        archive.extractall(folder, names)
    return folder / "model"


def timed(pipeline: Pipeline, batches: list[list[Request]], redis: psutil.Process) -> Figures:
    """Processor time of this thread and of Redis per 1,000 questions, and a batch's latency."""
    latencies = []
    before, worker = cpu_seconds(redis), time.process_time()
    for batch in batches:
        began = time.perf_counter()
        pipeline.answer(batch)
        latencies.append(time.perf_counter() - began)
    worker, n = time.process_time() - worker, sum(map(len, batches))
    latencies.sort()
    return {
        "questions": n,
        "worker_cpu_s_per_1000": round(worker / n * 1000, 4),
        "redis_cpu_s_per_1000": round((cpu_seconds(redis) - before) / n * 1000, 4),
        "batch_p50_ms": round(value_at(latencies, 0.5) * 1000, 3),
        "batch_p99_ms": round(value_at(latencies, 0.99) * 1000, 3),
    }


def streams(seconds: float, rounds: int) -> Iterator[Figures]:
    """Two stacks side by side, of which one is idle at a time."""
    with running_stack([VERSION]) as cached, running_stack([VERSION], "--no-redis") as usual:
        for _ in range(rounds):
            for share in SHARES:
                seed = next(seeds)
                for way, stack in (("no cache", usual), ("cache", cached)):
                    if way == "cache":
                        empty(stack)
                    before = counts(stack) if way == "cache" else {}
                    generator = Generator(
                        Target.of(f"{stack.gateway}/predict"), bodies(seed, repeats=share, ready=20_000)
                    )
                    meter = CpuMeter(stack.pids())
                    found = generator.closed(CONNECTIONS, seconds).summary()
                    used = {name: round(s / found["requests"] * 1000, 4) for name, s in meter.used().items()}
                    row = {"repeats": share, "way": way, **found, "cpu_s_per_1000": used}
                    yield row | (since(before, reported(stack)) if way == "cache" else {})


def equal(seconds: float, rounds: int) -> Iterator[Figures]:
    with running_stack([VERSION]) as stack:
        ask(stack, 5)
        for _ in range(rounds):
            before = reported(stack)
            stream = repeat(next(bodies(next(seeds))))
            generator = Generator(Target.of(f"{stack.gateway}/predict"), stream)
            found = generator.open(iter([0.0] * EQUAL), most_connections=EQUAL).summary()
            yield {"way": f"{EQUAL} equal requests at once", **found, **since(before, reported(stack))}


def broken(seconds: float, rounds: int) -> Iterator[Figures]:
    """Open loop: latency counts from the moment at which a request was meant to go out."""
    with running_stack([VERSION]) as stack:
        redis = psutil.Process(stack.marctl("status")["redis_pid"])
        ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "usual": (lambda: None, lambda: None),
            "frozen": (redis.suspend, redis.resume),
            "frozen in the middle": (lambda: None, redis.resume),
        }
        for _ in range(rounds):
            for way, (before, after) in ways.items():
                before()
                yield {"way": way, **loaded(stack, seconds, redis.suspend if "middle" in way else None)}
                after()
                time.sleep(1.0)
        yield {"way": "killed in the middle", **loaded(stack, seconds, redis.kill)}
        yield {"way": "absent", **loaded(stack, seconds, None)}


def loaded(stack: Stack, seconds: float, middle: Callable[[], None] | None) -> Figures:
    """A third of the requests repeats one; `middle` is called halfway."""
    generator = Generator(Target.of(f"{stack.gateway}/predict"), bodies(next(seeds), repeats=0.3, ready=10_000))
    times = poisson_times(RATE, seconds)
    return generator.open(times if middle is None else calling(times, seconds / 2, middle)).summary()


def calling(times: Iterator[float], at: float, action: Callable[[], None]) -> Iterator[float]:
    """The same times; the action happens when the first one after `at` is taken."""
    done = False
    for due in times:
        if due >= at and not done:
            done = True
            action()
        yield due


def ask(stack: Stack, n: int) -> None:
    Generator(Target.of(f"{stack.gateway}/predict"), bodies(next(seeds))).open(iter([0.0] * n))


def empty(stack: Stack) -> None:
    with redis_server.connect(stack.marctl("status")["redis"]) as client:
        purge(client, "mcqa", None)


def reported(stack: Stack) -> Figures:
    """The workers' counts up to now: the batch after a second brings them."""
    time.sleep(REPORT_S)
    ask(stack, 1)
    time.sleep(REPORT_S)
    return counts(stack)


def counts(stack: Stack) -> Figures:
    rows = stack.marctl("cache", "stats")["versions"]
    return next((row for row in rows if f"{row['model']} {row['version']}" == NAME), {})


def since(before: Figures, now: Figures) -> Figures:
    """One question of these is `reported`'s own."""
    names = {"hits": "hits", "misses": "misses", "computed": "computed", "errors": "cache_errors"}
    return {name: now[counted] - before.get(counted, 0) for counted, name in names.items()}


COMMANDS: dict[str, Measure] = {"cost": cost, "streams": streams, "equal": equal, "broken": broken}


def main() -> int:
    rows = measure_and_tell("python -m loadtest.cache", "Measure the prediction cache.", COMMANDS)
    return 1 if any(row.get("errors") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
