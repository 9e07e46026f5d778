"""What a question costs in process, without a server, by runtime: the ceiling that a server can come near to.

    python -m loadtest.speed model_store/archives/mcqa-1.0.mar
    python -m loadtest.speed ARCHIVE --variants padded,packed-bfloat16 --questions dev.jsonl --rounds 7
    python -m loadtest.speed ARCHIVE --variants served,packed-int8-32-rows --data FOLDER        accuracy, too

Batches of 32 requests from JSON to JSON (tokenizing included), one thread unless told otherwise, the variants in turn
in every round. Each round has questions of its own: in repeated ones every kernel would be made already. One JSON line
per variant, the median over the rounds; processor seconds, so that other processes matter little. Probabilities are
compared with the model's own code in float32.
"""

from __future__ import annotations

import argparse
import json
import re
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

from loadtest.questions import bodies
from marctl_handlers.archive import CONFIG_FILE, MODEL_FOLDER, pipeline_of
from marctl_handlers.core.memory import keep_memory
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.tasks.multiple_choice.schema import Question, pairs
from marctl_handlers.tasks.multiple_choice.task import MultipleChoice
from marctl_handlers.text.hub import load_model
from marctl_handlers.text.processor import Processor
from marctl_handlers.text.settings import TextSettings
from marctl_handlers.text.torch_runtime import TorchRuntime

BATCH = 32
REFERENCE = "padded-float32"
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {"padded": True, "precision": "float32", "rows_per_pass": 16},
    "served": {},
    "padded": {"padded": True, "precision": "bfloat16", "rows_per_pass": 16},
    "packed-float32": {"precision": "float32"},
    "packed-bfloat16": {"precision": "bfloat16"},
    "packed-int8": {"precision": "int8"},
}
"""Name -> settings in place of the archive's own; `padded` takes the model's own code.

`-N-rows` behind any name: so many rows in a pass.
"""
DEFAULT = "padded,packed-float32,packed-bfloat16,packed-int8,packed-int8-32-rows,packed-int8-64-rows"

Batches = list[list[Request]]


def cut(questions: list[bytes]) -> Batches:
    requests = [Request(body, str(i)) for i, body in enumerate(questions)]
    return [requests[i : i + BATCH] for i in range(0, len(requests), BATCH)]


def changes_of(name: str) -> dict[str, Any]:
    """A variant's settings; raises ValueError if there is none of this name."""
    found = re.fullmatch(r"(.+?)(?:-(\d+)-rows)?", name)
    if found is None or found[1] not in VARIANTS:
        raise ValueError(f"no variant {name!r}; expected one of {', '.join(VARIANTS)}, with -N-rows behind it or not")
    return VARIANTS[found[1]] | ({"rows_per_pass": int(found[2])} if found[2] else {})


def load(root: Path, name: str, threads: int = 1) -> Pipeline:
    """A variant of the archive extracted to `root`, warmed up."""
    section = yaml.safe_load((root / CONFIG_FILE).read_text())["handler"]
    changes = changes_of(name) | {"threads": threads}
    padded = changes.pop("padded", False)
    settings = TextSettings.load(section | changes)
    pipeline = pipeline_of(MultipleChoice, root / MODEL_FOLDER, Model("speed", name), settings, "cpu")
    if padded:
        task = pipeline.task
        assert isinstance(task, MultipleChoice)
        dtype = getattr(torch, Processor.here().numbers(settings.precision))
        model = load_model(root / MODEL_FOLDER, str(task.hub_class), dtype)
        task.model = TorchRuntime.of(model, task.encoder, settings, "cpu")
    pipeline.task.calibration = (
        None  # number formats differ less in calibrated probabilities, and differently by version
    )
    pipeline.warm_up()
    return pipeline


def answer(pipeline: Pipeline, batches: Batches) -> list[list[float]]:
    """Every question's probabilities."""
    replies = [reply for batch in batches for reply in pipeline.answer(batch)]
    return [msgspec.json.decode(reply.body)["probabilities"] for reply in replies]


def seconds(pipeline: Pipeline, batches: Batches) -> tuple[float, float]:
    """Processor seconds, of all threads, and seconds by the clock, for 1,000 questions."""
    began, cpu_began = time.monotonic(), time.process_time()
    for batch in batches:
        pipeline.answer(batch)
    per = 1000 / sum(map(len, batches))
    return (time.process_time() - cpu_began) * per, (time.monotonic() - began) * per


def tokenizing_seconds(pipeline: Pipeline, batches: Batches) -> float:
    """The part of it that goes to tokenizing, per 1,000 questions."""
    task = pipeline.task
    assert isinstance(task, MultipleChoice)
    asked = [[msgspec.json.decode(request.body or b"", type=Question) for request in batch] for batch in batches]
    texts = [[pair for question in batch for pair in pairs(question)] for batch in asked]
    began = time.process_time()
    for rows in texts:
        task.encoder.encode(rows)
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


def accuracy(pipeline: Pipeline, folder: Path) -> dict[str, float]:
    """In %, by data set of the dev split in `folder`, and their mean, through the code of `marctl eval`."""
    from marctl.train.evaluate import evaluate, mean_accuracy
    from marctl.train.questions import find_files

    scores = [evaluate(pipeline, path) for path in find_files(folder, "dev")]
    found = {score.dataset: score.accuracy for score in scores} | {"mean": mean_accuracy(scores)}
    return {name: round(100 * share, 1) for name, share in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Processor seconds per 1,000 questions, by runtime.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--variants", default=DEFAULT, help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="JSONL, in place of made questions")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with dev splits, of which to tell the accuracy")
    asked = parser.parse_args()
    names = asked.variants.split(",")
    try:
        for name in names:
            changes_of(name)
    except ValueError as err:
        parser.error(str(err))
    keep_memory()
    stream = bodies(0, asked.questions)
    rounds = [cut(list(islice(stream, asked.count))) for _ in range(asked.rounds)]
    batches = rounds[0]
    with tempfile.TemporaryDirectory(prefix="speed-") as folder, zipfile.ZipFile(asked.archive) as archive:
        archive.extractall(folder)
        root = Path(folder)
        expected = answer(load(root, REFERENCE), batches)
        pipelines = {name: load(root, name, asked.threads) for name in names}
    torch.set_num_threads(asked.threads)
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for pipeline in pipelines.values():
        answer(pipeline, batches)
    for asked_now in rounds:
        for name, pipeline in pipelines.items():
            costs[name].append(seconds(pipeline, asked_now))
    for name, pipeline in pipelines.items():
        cpu, clock = zip(*costs[name], strict=True)
        figures: dict[str, Any] = {"variant": name, "cpu_s_per_1000": round(statistics.median(cpu), 3)}
        figures |= {"lowest": round(min(cpu), 3), "questions_per_s": round(1000 / statistics.median(clock), 1)}
        figures |= {"tokenizing": round(tokenizing_seconds(pipeline, batches), 3)}
        figures |= compare(answer(pipeline, batches), expected)
        if asked.data:
            figures["accuracy"] = accuracy(pipeline, asked.data)
        sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
