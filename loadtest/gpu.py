"""What one GPU can do, in process: predictions a second, latency of a batch and utilisation, by workers and settings.

    python -m loadtest.gpu model_store/archives/mcqa-2.0.mar                        on the first GPU
    python -m loadtest.gpu ARCHIVE --model bert-base                                BERT-base's size, random weights
    python -m loadtest.gpu ARCHIVE --device cpu --workers 1 --seconds 1 --batches 8 --rows 16    to try the command

Each worker is a process with a model of its own, as in the server, that answers batches from JSON to JSON without a
pause. One JSON line per combination. Latency is that of a whole batch; a server's queue comes on top.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from loadtest.questions import bodies
from marctl_handlers.archive import CONFIG_FILE, MODEL_FOLDER, pipeline_of
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.torch_runtime import TorchRuntime

DISTINCT = 64
"""Batches that a worker goes through in turn."""


def load(root: Path, model: str, device: str, rows: int, compiled: bool) -> Pipeline:
    """The archive's version on the device, its model replaced if another one is asked for."""
    section = yaml.safe_load((root / CONFIG_FILE).read_text())["handler"]
    settings = TextSettings.load(section | {"precision": "bfloat16", "rows_per_pass": rows})
    pipeline = pipeline_of(MultipleChoice, root / MODEL_FOLDER, Model("gpu", "0"), settings, device)
    task: Any = pipeline.task
    if model == "bert-base":
        from transformers import BertConfig, BertForMultipleChoice

        made: Any = BertForMultipleChoice(BertConfig())
        made = made.bfloat16().eval().requires_grad_(False)
        task.model = TorchRuntime.of(made, task.encoder, settings, device)
    if compiled:
        task.model.model = torch.compile(task.model.model, dynamic=True)
    pipeline.warm_up()
    return pipeline


def work(options: dict[str, Any], number: int, ready: Any, results: Any) -> None:
    """One worker: batches for so many seconds, then its latencies in seconds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder, zipfile.ZipFile(options["archive"]) as archive:
        archive.extractall(folder)
        pipeline = load(Path(folder), options["model"], options["device"], options["rows"], options["compiled"])
    size = options["batch"]
    requests = [Request(body, str(i)) for i, body in enumerate(islice(bodies(number), size * DISTINCT))]
    batches = itertools.cycle([requests[i : i + size] for i in range(0, len(requests), size)])
    for batch in islice(batches, DISTINCT if options["device"] != "cpu" else 1):
        pipeline.answer(batch)
    ready.wait()
    latencies = []
    end = time.monotonic() + options["seconds"]
    while (began := time.monotonic()) < end:
        replies = pipeline.answer(next(batches))
        latencies.append(time.monotonic() - began)
        assert all(reply.code == 200 for reply in replies), "a question was refused"
    results.put(latencies)


def measure(options: dict[str, Any], workers: int) -> dict[str, Any]:
    """All workers at once."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(workers + 1), context.Queue()
    processes = [context.Process(target=work, args=(options, i, ready, results)) for i in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    busy = []
    end = time.monotonic() + options["seconds"]
    while time.monotonic() < end:
        time.sleep(0.2)
        busy += [torch.cuda.utilization()] if options["device"] != "cpu" else []
    latencies = sorted(latency for _ in processes for latency in results.get())
    for process in processes:
        process.join()
    return {
        "predictions_per_s": round(len(latencies) * options["batch"] / options["seconds"]),
        "batch_p50_ms": round(statistics.median(latencies) * 1000, 1),
        "batch_p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
        "utilisation_percent": round(statistics.mean(busy)) if busy else None,
    }


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description="Predictions a second on one GPU, by workers and settings.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", choices=("archive", "bert-base"), default="archive")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4, 8], metavar="N,N")
    parser.add_argument("--batches", type=numbers, default=[32, 128], metavar="N,N", help="questions in a batch")
    parser.add_argument("--rows", type=numbers, default=[64, 256, 512], metavar="N,N", help="rows in a pass")
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="both", help="torch.compile")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    name = "cpu" if asked.device == "cpu" else torch.cuda.get_device_name(asked.device)
    compiled = {"no": [False], "yes": [True], "both": [False, True]}[asked.compile]
    for batch, rows, compiling, workers in itertools.product(asked.batches, asked.rows, compiled, asked.workers):
        options = vars(asked) | {"batch": batch, "rows": rows, "compiled": compiling}
        setting = {"device": name, "model": asked.model, "workers": workers, "batch": batch, "rows": rows}
        found = measure(options, workers)
        sys.stdout.write(json.dumps(setting | {"compiled": compiling} | found) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
