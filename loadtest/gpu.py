"""What one GPU can do, in process: predictions a second, latency and utilisation, by model, workers and batch.

    python -m loadtest.gpu model_store/archives/mcqa-2.0.mar                 the whole study on the first GPU
    python -m loadtest.gpu ARCHIVE --variants graphs,kernels,padded          with what graphs and packing are worth
    python -m loadtest.gpu ARCHIVE --device cpu --workers 1 --batches 1,8 --seconds 1      to try the command

Each worker is a process with a model of its own, as in the server, that answers batches from JSON to JSON without a
pause. `archive` is the version as it is served, `bert-base` the same questions through BERT-base's size with random
weights. One JSON line per combination, and at the end one per model that holds it against the aims: 10,000 predictions
a second with 99 % of the batches under 100 ms, and a GPU that computes for more than 80 % of the time. Latency is that
of a whole batch; a server's queue comes on top. On a processor the same steps run, without the kernel of attention,
graphs and pinned memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from loadtest.questions import bodies
from marctl.stack.metrics.gpus import FIELDS, TOOL, ask, number
from marctl_handlers.archive import CONFIG_FILE, MODEL_FOLDER, pipeline_of
from marctl_handlers.core.devices import fault_of, take_gpu
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.text.gpu.model import GpuBert
from marctl_handlers.text.gpu.runtime import GpuRuntime
from marctl_handlers.text.hub import load_model
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.torch_runtime import TorchRuntime

MODELS = ("archive", "bert-base")
VARIANTS = ("graphs", "kernels", "padded")
"""As served; without CUDA graphs; the model's own code over padded rows."""
DISTINCT = 2048
"""Questions that a worker goes through in turn, and at least two batches."""
WARM_UP_BATCHES = 4
SAMPLE_S = 0.2
START_S, END_S = 600.0, 120.0
"""Until every worker is ready, and until all have told what they measured."""
RATE, P99_MS, BUSY_PERCENT = 10_000, 100, 80
"""What is aimed at."""


def load(root: Path, asked: dict[str, Any], workers: int) -> Pipeline:
    """The archive's version with the model that is asked for, on the device."""
    device = torch.device(asked["device"])
    take_gpu(asked["device"], workers)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    section = yaml.safe_load((root / CONFIG_FILE).read_text())["handler"] | {"precision": "float32"}
    settings = TextSettings.load(section)
    pipeline = pipeline_of(MultipleChoice, root / MODEL_FOLDER, Model("gpu", "0"), settings, "cpu")
    task: Any = pipeline.task
    model = (
        bert_base(dtype) if asked["model"] == "bert-base" else load_model(root / MODEL_FOLDER, task.hub_class, dtype)
    )
    if asked["variant"] == "padded":
        task.model = TorchRuntime.of(model, task.encoder, settings, asked["device"])
    else:
        bert = GpuBert(model.to(device), task.encoder.template, dtype, settings.max_tokens)
        task.model = GpuRuntime(bert, task.encoder, settings, graphs=asked["variant"] == "graphs")
    pipeline.warm_up()
    return pipeline


def bert_base(dtype: torch.dtype) -> Any:
    from transformers import BertConfig, BertForMultipleChoice

    model: Any = BertForMultipleChoice(BertConfig())
    return model.to(dtype).eval().requires_grad_(False)


def work(asked: dict[str, Any], workers: int, place: int, meeting: threading.Barrier, results: Any) -> None:
    """One worker: for each size, batches for so many seconds, and then their latencies in seconds."""
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder, zipfile.ZipFile(asked["archive"]) as archive:
            archive.extractall(folder)
            pipeline = load(Path(folder), asked, workers)
        for size in asked["batches"]:
            batches = questions(place, size)
            for batch in islice(batches, WARM_UP_BATCHES):
                answer(pipeline, batch)
            meeting.wait(START_S)
            latencies = list(timed(pipeline, batches, asked["seconds"]))
            results.put(latencies)
    except BaseException:
        meeting.abort()  # or the others would wait for this one
        raise


def questions(place: int, size: int) -> Iterator[list[Request]]:
    """Batches of this worker's own questions, over and over."""
    count = max(DISTINCT // size, 2) * size
    made = [Request(body, str(i)) for i, body in enumerate(islice(bodies(place), count))]
    return itertools.cycle([made[i : i + size] for i in range(0, count, size)])


def answer(pipeline: Pipeline, batch: Sequence[Request]) -> None:
    if any(reply.code != 200 for reply in pipeline.answer(batch)):
        raise RuntimeError("a question was refused")


def timed(pipeline: Pipeline, batches: Iterator[list[Request]], seconds: float) -> Iterator[float]:
    """A latency for each batch that ends in time, and for the first one in any case."""
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        answer(pipeline, next(batches))
        yield time.monotonic() - began


def measure(asked: dict[str, Any], workers: int) -> Iterator[dict[str, Any]]:
    """All workers at once, a line for each size of a batch. Raises BrokenBarrierError if one of them fails."""
    context = multiprocessing.get_context("spawn")
    meeting, results = context.Barrier(workers + 1), context.Queue()
    processes = [context.Process(target=work, args=(asked, workers, i, meeting, results)) for i in range(workers)]
    for process in processes:
        process.start()
    try:
        for size in asked["batches"]:
            meeting.wait(START_S)
            busy = list(watched(asked["device"], asked["seconds"]))
            latencies = sorted(itertools.chain(*(results.get(timeout=END_S) for _ in processes)))
            yield {"workers": workers, "batch": size, **told(latencies, size, asked["seconds"], busy)}
    finally:
        for process in processes:
            process.join(SAMPLE_S * 10)
            process.kill()


def watched(device: str, seconds: float) -> Iterator[float]:
    """The GPU's utilisation in percent, as NVIDIA's tool tells it, every so often; nothing for a processor."""
    end = time.monotonic() + seconds
    place, column = torch.device(device).index or 0, 1 + list(FIELDS).index("utilization.gpu")
    while (left := end - time.monotonic()) > 0:
        rows = ask(shutil.which(TOOL)) if device != "cpu" else []
        if place < len(rows) and (value := number(rows[place][column])) is not None:
            yield value
        time.sleep(min(left, SAMPLE_S))


def told(latencies: Sequence[float], size: int, seconds: float, busy: Sequence[float]) -> dict[str, Any]:
    """`latencies` sorted, at least one."""
    return {
        "predictions_per_s": round(len(latencies) * size / seconds),
        "batch_p50_ms": round(statistics.median(latencies) * 1000, 1),
        "batch_p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
        "utilisation_percent": round(statistics.mean(busy)) if busy else None,
    }


def verdict(lines: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    """The fastest combination in time, and whether it is what was aimed at."""
    in_time = [line for line in lines if line["model"] == model and line["batch_p99_ms"] < P99_MS]
    best = max(in_time, key=lambda line: int(line["predictions_per_s"]), default=None)
    return {
        "model": model,
        "aim": f"{RATE} predictions/s, p99 under {P99_MS} ms, more than {BUSY_PERCENT} % busy",
        "best_in_time": best,
        "fast_enough": best is not None and best["predictions_per_s"] >= RATE,
        "busy_enough": best is not None and (best["utilisation_percent"] or 0) > BUSY_PERCENT,
    }


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def words(known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"no {min(unknown)!r}; expected some of {','.join(known)}")
        return text.split(",")

    return read


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predictions a second on one GPU, by model, workers and batch.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--models", type=words(MODELS), default=list(MODELS), metavar="NAME,NAME")
    parser.add_argument("--variants", type=words(VARIANTS), default=["graphs"], metavar="NAME,NAME")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4], metavar="N,N", help="processes on the GPU")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 128, 512], metavar="N,N", help="questions each")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each combination")
    asked = parser.parse_args(arguments)
    if not asked.archive.is_file():
        parser.error(f"no archive {asked.archive}; marctl build makes it")
    fault = None if asked.device == "cpu" else fault_of(torch.device(asked.device).index or 0)
    if fault is not None:
        parser.error(f"{fault}; --device cpu tries the command without a GPU")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options(arguments)
    name = "cpu" if asked.device == "cpu" else torch.cuda.get_device_name(asked.device)
    lines = []
    for model, variant, workers in itertools.product(asked.models, asked.variants, asked.workers):
        setting = {"device": name, "torch": torch.__version__, "model": model, "variant": variant}
        for found in measure(vars(asked) | {"model": model, "variant": variant}, workers):
            lines.append(setting | found)
            show(lines[-1])
    for model in asked.models:
        show(verdict(lines, model))
    return 0


def show(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
