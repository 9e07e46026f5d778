"""Accuracy of an archive on labelled questions, through the code that serves."""

from __future__ import annotations

import math
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from handlers.core.task import Request, Task
from handlers.loading import load_task
from handlers.tasks.multiple_choice.task import Answer
from scripts.build.reader import read_archive
from scripts.core.errors import UserError
from scripts.core.progress import track
from scripts.train.questions import Dataset, LabelledQuestion, read_questions

BATCH = 32


@dataclass(frozen=True)
class Score:
    """One model version on one data set. `chance` is what guessing gives; all shares are 0 to 1."""

    dataset: str
    questions: int
    right: int
    chance: float
    cpu_seconds: float
    """Processor time of this process, over all its threads."""
    right_unrepeated: int | None = None
    unrepeated: int | None = None
    """Questions that do not stand in the training split; None where there is no training split or no repeat."""

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval (normal approximation)."""
        return 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) / self.questions)

    def record(self) -> dict[str, Any]:
        """What is kept in metadata.yaml: no timing, which belongs to a machine."""
        record: dict[str, Any] = {"accuracy": round(self.accuracy, 4), "questions": self.questions}
        if self.unrepeated and self.right_unrepeated is not None:
            record["accuracy_without_repeats"] = round(self.right_unrepeated / self.unrepeated, 4)
        return record


@contextmanager
def open_archive(path: Path) -> Iterator[Task[Any, Any]]:
    """The archive's task in this process, from a temporary copy of its files."""
    archive = read_archive(path)
    with tempfile.TemporaryDirectory(prefix="marctl-eval-") as root:
        with zipfile.ZipFile(path) as file:
            file.extractall(root)
        config = yaml.safe_load(Path(root, archive.manifest["model"]["configFile"]).read_text())
        yield load_task(Path(root), archive.name, archive.version, config.get("handler"))


def evaluate(task: Task[Any, Any], dataset: Dataset) -> Score:
    """Ask every question and count the right answers; raises UserError if one is refused."""
    bodies = [request_body(question) for question in dataset.questions]
    starts = range(0, len(bodies), BATCH)
    predictions: list[int] = []
    cpu_seconds = 0.0
    with track(f"{task.name} {task.version} on {dataset.name}", total=len(starts)) as progress:
        for start in starts:
            requests = [Request(body, str(start + i)) for i, body in enumerate(bodies[start : start + BATCH])]
            began = time.process_time()
            replies = task.answer(requests)
            cpu_seconds += time.process_time() - began
            for request, reply in zip(requests, replies, strict=True):
                if reply.code != 200:
                    raise UserError(f"{dataset.path}:{int(request.id) + 1}: {reply.body.decode()}")
                predictions.append(msgspec.json.decode(reply.body, type=Answer).prediction)
            progress("")
    hits = [p == q.label for p, q in zip(predictions, dataset.questions, strict=True)]
    fresh = [hit for hit, repeated in zip(hits, repeats(dataset), strict=True) if not repeated]
    some_repeat = len(fresh) < len(hits)
    return Score(
        dataset=dataset.name,
        questions=len(hits),
        right=sum(hits),
        chance=sum(1 / len(q.choices) for q in dataset.questions) / len(hits),
        cpu_seconds=cpu_seconds,
        right_unrepeated=sum(fresh) if some_repeat else None,
        unrepeated=len(fresh) if some_repeat else None,
    )


def repeats(dataset: Dataset) -> list[bool]:
    """For each question, whether it stands in `train.jsonl` beside the file, its choices in whatever order."""
    train = dataset.path.with_name("train.jsonl")
    if train == dataset.path or not train.exists():
        return [False] * len(dataset.questions)
    seen = {identity(question) for question in read_questions(train).questions}
    return [identity(question) in seen for question in dataset.questions]


def identity(question: LabelledQuestion) -> tuple[Any, ...]:
    return (question.context, question.question, frozenset(question.choices))


def request_body(question: LabelledQuestion) -> bytes:
    """The request that a client would send for it."""
    body: dict[str, Any] = {"question": question.question, "choices": question.choices}
    if question.context is not None:
        body["context"] = question.context
    return msgspec.json.encode(body)


def mean_accuracy(scores: Sequence[Score]) -> float:
    """Unweighted over data sets."""
    return sum(score.accuracy for score in scores) / len(scores)
