"""What a question costs in process, without a server, by runtime: the ceiling that a server can come near to.

    python -m loadtest.speed model_store/archives/mcqa-1.0.mar
    python -m loadtest.speed ARCHIVE --variants padded,packed-bfloat16 --questions dev.jsonl --rounds 7

Batches of 32 requests from JSON to JSON (tokenizing included), one thread, the variants in turn in every round. Each
round has questions of its own: in repeated ones every kernel would be made already. One JSON line per variant, the
median over the rounds; processor seconds, so that other processes matter little. Probabilities are compared with the
model's own code in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml

from handlers.loading import load_multiple_choice
from handlers.multiple_choice import MultipleChoice
from handlers.runtimes.choose import dtype_of, load_model
from handlers.runtimes.memory import keep_memory
from handlers.runtimes.torch_runtime import TorchScorer
from handlers.settings import Settings
from handlers.task import Request
from loadtest.questions import bodies

BATCH = 32
REFERENCE = "padded-float32"
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {"padded": True, "precision": "float32", "rows_per_pass": 16},
    "padded": {"padded": True, "precision": "bfloat16", "rows_per_pass": 16},
    "packed-float32": {"precision": "float32"},
    "packed-bfloat16": {"precision": "bfloat16"},
    "packed-int8": {"precision": "int8"},
    "packed-int8-32-rows": {"precision": "int8", "rows_per_pass": 32},
    "packed-int8-64-rows": {"precision": "int8", "rows_per_pass": 64},
    "packed-int8-128-rows": {"precision": "int8", "rows_per_pass": 128},
}
"""Name -> settings in place of the archive's own; `padded` takes the model's own code."""

Batches = list[list[Request]]


def cut(questions: list[bytes]) -> Batches:
    requests = [Request(body, str(i)) for i, body in enumerate(questions)]
    return [requests[i : i + BATCH] for i in range(0, len(requests), BATCH)]


def load(root: Path, name: str) -> Any:
    """A variant of the archive extracted to `root`."""
    section = yaml.safe_load((root / "model-config.yaml").read_text())["handler"]
    changes = dict(VARIANTS[name])
    padded = changes.pop("padded", False)
    settings = Settings.load(section | changes)
    task: Any = load_multiple_choice(root / "model", "speed", name, settings, "cpu")
    if padded:
        model = load_model(root / "model", dtype_of(settings.precision, "cpu"))
        task.scorer = TorchScorer.of(model, task.encoder, settings, "cpu")
    task.warm_up()
    return task


def answer(task: MultipleChoice, batches: Batches) -> list[list[float]]:
    """Every question's probabilities."""
    replies = [reply for batch in batches for reply in task.answer(batch)]
    return [msgspec.json.decode(reply.body)["probabilities"] for reply in replies]


def cpu_seconds(task: MultipleChoice, batches: Batches) -> float:
    """Per 1,000 questions."""
    began = time.process_time()
    for batch in batches:
        task.answer(batch)
    return (time.process_time() - began) / sum(map(len, batches)) * 1000


def tokenizing_seconds(task: MultipleChoice, batches: Batches) -> float:
    """The part of it that goes to tokenizing, per 1,000 questions."""
    texts = [[msgspec.json.decode(request.body or b"") for request in batch] for batch in batches]
    pairs = [[(f"{q.get('context', '')} {q['question']}", c) for q in batch for c in q["choices"]] for batch in texts]
    began = time.process_time()
    for batch in pairs:
        task.encoder.encode(batch)
    return (time.process_time() - began) / sum(map(len, batches)) * 1000


def compare(found: list[list[float]], expected: list[list[float]]) -> dict[str, float]:
    """How far probabilities are apart, and how often the choice is the same."""
    gaps = sorted(max(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(found, expected, strict=True))
    same = sum(x.index(max(x)) == y.index(max(y)) for x, y in zip(found, expected, strict=True))
    return {
        "largest_difference": round(gaps[-1], 5),
        "median_difference": round(statistics.median(gaps), 5),
        "same_choice": round(same / len(found), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Processor seconds per 1,000 questions, by runtime.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--variants", default=",".join(list(VARIANTS)[1:]), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="JSONL, in place of made questions")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    keep_memory()
    stream = bodies(0, asked.questions)
    rounds = [cut(list(islice(stream, asked.count))) for _ in range(asked.rounds)]
    batches = rounds[0]
    with tempfile.TemporaryDirectory(prefix="speed-") as folder, zipfile.ZipFile(asked.archive) as archive:
        archive.extractall(folder)
        root = Path(folder)
        expected = answer(load(root, REFERENCE), batches)
        tasks = {name: load(root, name) for name in asked.variants.split(",")}
    torch.set_num_threads(1)
    costs: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        answer(task, batches)
    for asked_now in rounds:
        for name, task in tasks.items():
            costs[name].append(cpu_seconds(task, asked_now))
    for name, task in tasks.items():
        median = statistics.median(costs[name])
        figures = {"variant": name, "cpu_s_per_1000": round(median, 3), "lowest": round(min(costs[name]), 3)}
        figures |= {"tokenizing": round(tokenizing_seconds(task, batches), 3)}
        sys.stdout.write(json.dumps(figures | compare(answer(task, batches), expected)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
