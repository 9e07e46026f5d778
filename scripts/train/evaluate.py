"""Accuracy and calibration of an archive on labelled rows, through the code that serves."""

from __future__ import annotations

import math
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import yaml

from handlers.archive import load
from handlers.core.errors import HandlerError
from handlers.core.messages import Model
from handlers.core.pipeline import Pipeline
from handlers.core.task import Task
from scripts.build.reader import read_archive
from scripts.core.errors import UserError
from scripts.core.progress import track
from scripts.train.questions import dataset_name
from scripts.train.reliability import Judged, Reliability

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
    judged: Judged | None = None
    """None where the task gives no probabilities."""

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval (normal approximation)."""
        return 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) / self.questions)

    @cached_property
    def reliability(self) -> Reliability | None:
        return None if self.judged is None else Reliability.of(self.judged)

    def record(self) -> dict[str, Any]:
        """What is kept in metadata.yaml: no timing, which belongs to a machine, and no calibration, which
        `marctl calibrate` records from held-out rows."""
        record: dict[str, Any] = {"accuracy": round(self.accuracy, 4), "questions": self.questions}
        if self.unrepeated and self.right_unrepeated is not None:
            record["accuracy_without_repeats"] = round(self.right_unrepeated / self.unrepeated, 4)
        return record


@dataclass(frozen=True)
class Labelled:
    """One row of a data file: a task's question, and its true label."""

    question: Any
    label: Any


@contextmanager
def open_archive(path: Path) -> Iterator[Pipeline]:
    """The archive's version in this process, from a temporary copy of its files."""
    archive = read_archive(path)
    with tempfile.TemporaryDirectory(prefix="marctl-eval-") as root:
        with zipfile.ZipFile(path) as file:
            file.extractall(root)
        config = yaml.safe_load(Path(root, archive.manifest["model"]["configFile"]).read_text())
        yield load(Path(root), Model(archive.name, archive.version), config.get("handler"))


def read_rows(path: Path, task: type[Task[Any, Any]], *, skip_refused: bool = False) -> list[Labelled]:
    """JSON lines of a task's question, with a `label` beside its fields, and perhaps an `id`.

    Raises UserError naming the line and field of the first bad row, unless those that are no question of the task are
    to be skipped.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}; expected a JSONL file of labelled rows") from err
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
            label: Any = msgspec.convert(fields.pop("label"), task.label_type)
            fields.pop("id", None)
            question = msgspec.convert(fields, task.question_type)
        except KeyError as err:
            raise UserError(
                f"{path}:{number}: no label; expected the question's fields and `label` beside them"
            ) from err
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            if skip_refused and isinstance(err, msgspec.ValidationError):
                continue
            raise UserError(f"{path}:{number}: {err}") from err
        if fault := task.label_fault(question, label):
            raise UserError(f"{path}:{number}: {fault}")
        found.append(Labelled(question, label))
    if not found:
        raise UserError(f"{path}: no rows in the file; expected one JSON object a line")
    return found


def evaluate(pipeline: Pipeline, path: Path) -> Score:
    """Ask every row of a data file and count the right answers; raises UserError if one is refused."""
    task, rows = type(pipeline.task), read_rows(path, type(pipeline.task))
    answers, cpu_seconds = ask(pipeline, path, rows, pipeline.predict)
    hits = [task.is_right(answer, row.label) for answer, row in zip(answers, rows, strict=True)]
    fresh = [hit for hit, repeated in zip(hits, repeats(path, rows, task), strict=True) if not repeated]
    some_repeat = len(fresh) < len(hits)
    return Score(
        dataset=dataset_name(path),
        questions=len(hits),
        right=sum(hits),
        chance=chance(task, rows),
        cpu_seconds=cpu_seconds,
        right_unrepeated=sum(fresh) if some_repeat else None,
        unrepeated=len(fresh) if some_repeat else None,
        judged=judge(pipeline.task, rows, answers),
    )


def ask(
    pipeline: Pipeline, path: Path, rows: Sequence[Labelled], by: Callable[[list[Any]], list[Any]]
) -> tuple[list[Any], float]:
    """What `by` gives for each row of a file, and the processor time; raises UserError if one is refused."""
    starts = range(0, len(rows), BATCH)
    found: list[Any] = []
    cpu_seconds = 0.0
    with track(f"{pipeline.model} on {dataset_name(path)}", total=len(starts)) as progress:
        for start in starts:
            questions = [row.question for row in rows[start : start + BATCH]]
            began = time.process_time()
            results = by(questions)
            cpu_seconds += time.process_time() - began
            for i, result in enumerate(results):
                if isinstance(result, HandlerError):
                    raise UserError(f"{path}, row {start + i + 1}: {result.error}: {result}")
            found += results
            progress("")
    return found, cpu_seconds


def judge(task: Task[Any, Any], rows: Sequence[Labelled], answers: Sequence[Any]) -> Judged | None:
    """The probabilities that clients read, beside the true labels."""
    if task.gives_probabilities_of is None:
        return None
    labels = [task.label_index(row.question, row.label) for row in rows]
    return Judged.of([task.probabilities(answer) for answer in answers], labels, task.gives_probabilities_of)


def chance(task: type[Task[Any, Any]], rows: Sequence[Labelled]) -> float:
    """What guessing gives: the task's own word, or the share of the most frequent label."""
    known = [task.chance(row.question) for row in rows]
    if None not in known:
        return sum(share for share in known if share is not None) / len(rows)
    return Counter(row.label for row in rows).most_common(1)[0][1] / len(rows)


def repeats(path: Path, rows: Sequence[Labelled], task: type[Task[Any, Any]]) -> list[bool]:
    """For each row, whether it stands in `train.jsonl` beside the file, too."""
    train = path.with_name("train.jsonl")
    if train == path or not train.exists():
        return [False] * len(rows)
    seen = {task.identity(row.question) for row in read_rows(train, task, skip_refused=True)}
    return [task.identity(row.question) in seen for row in rows]


def mean_accuracy(scores: Sequence[Score]) -> float:
    """Unweighted over data sets."""
    return sum(score.accuracy for score in scores) / len(scores)
