"""Accuracy and calibration of an archive on labelled rows, through the code that serves."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from marctl.build.extract import extract
from marctl.build.reader import read_archive
from marctl.core.errors import UserError
from marctl.core.progress import track
from marctl.train.questions import dataset_name
from marctl.train.ranking import area_interval, mean_area
from marctl.train.reliability import Judged, Reliability
from marctl.train.tables.groups import group_record, groups_of
from marctl.train.tables.table import LabelledTable, is_table, questions_of, read_table
from marctl_handlers.archive import load
from marctl_handlers.core.errors import HandlerError
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.task import Task

BATCH = 32
Edges = Mapping[str, Sequence[float]]


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
    ranks: bool = False
    """Whether `judged` has the probabilities of one event, so that rows can be ordered by them."""
    changed: int | None = None
    """Rows that are answered otherwise than in float32; None if that was not asked."""
    groups: tuple[dict[str, Any], ...] = ()
    """Of rows of a table, the figures of each group of people."""

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval (normal approximation)."""
        return 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) / self.questions)

    @cached_property
    def area(self) -> tuple[float, float] | None:
        """Under the ROC curve, and half its 95 % interval; None where there is no event."""
        if self.judged is None or not self.ranks:
            return None
        whole, judged = [np.arange(self.questions)], self.judged
        return mean_area(judged.confidence, judged.hit, whole), area_interval(judged.confidence, judged.hit, whole)

    @cached_property
    def reliability(self) -> Reliability | None:
        return None if self.judged is None else Reliability.of(self.judged)

    def record(self) -> dict[str, Any]:
        """What is kept in metadata.yaml: no timing, which belongs to a machine, and no calibration, which
        `marctl calibrate` records from held-out rows."""
        record: dict[str, Any] = {"accuracy": round(self.accuracy, 4), "questions": self.questions}
        if self.unrepeated and self.right_unrepeated is not None:
            record["accuracy_without_repeats"] = round(self.right_unrepeated / self.unrepeated, 4)
        if self.area is not None:
            record |= {"auc": round(self.area[0], 4), "auc_interval_95": round(self.area[1], 4)}
        return record


@dataclass(frozen=True)
class Labelled:
    """One row of a data file: a task's question, and its true label."""

    question: Any
    label: Any


@contextmanager
def open_archive(path: Path, changes: Mapping[str, Any] | None = None) -> Iterator[Pipeline]:
    """The archive's version in this process, from a temporary copy of its files; `changes`: settings in place of its
    own."""
    archive = read_archive(path)
    with tempfile.TemporaryDirectory(prefix="marctl-eval-") as root:
        folder = Path(root, "archive")
        extract(archive, folder)
        config = yaml.safe_load((folder / archive.manifest["model"]["configFile"]).read_text())
        yield load(folder, Model(archive.name, archive.version), (config.get("handler") or {}) | dict(changes or {}))


def read_rows(
    path: Path, task: type[Task[Any, Any]], *, skip_refused: bool = False, labelled: bool = True
) -> list[Labelled]:
    """JSON lines of a task's question, with a `label` beside its fields, and perhaps an `id`; without `labelled` the
    labels do not matter, and None stands in their place.

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
            given = fields.pop("label") if labelled else fields.pop("label", None)
            label: Any = msgspec.convert(given, task.label_type) if labelled else None
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
        if labelled and (fault := task.label_fault(question, label)):
            raise UserError(f"{path}:{number}: {fault}")
        found.append(Labelled(question, label))
    if not found:
        raise UserError(f"{path}: no rows in the file; expected one JSON object a line")
    return found


def evaluate(
    pipeline: Pipeline,
    path: Path,
    target: str | None = None,
    edges: Edges | None = None,
    exact: Pipeline | None = None,
) -> Score:
    """Ask every row of a data file and count the right answers; raises UserError if one is refused.

    `target`: the column of a table that has the labels; `edges`: where the groups of its numeric features begin;
    `exact`: the same version in float32, whose answers are compared.
    """
    task, table = type(pipeline.task), table_of(pipeline, path, target)
    rows = read_rows(path, task) if table is None else table_rows(pipeline, table)
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
        ranks=pipeline.task.gives_probabilities_of == "event",
        changed=None if exact is None else changed(task, answers, ask(exact, path, rows, exact.predict)[0]),
        groups=() if table is None else groups(pipeline, table, answers, edges or {}),
    )


def table_of(pipeline: Pipeline, path: Path, target: str | None) -> LabelledTable | None:
    """The rows of a CSV or Parquet file; None for other files. Raises UserError."""
    if not is_table(path):
        return None
    task, specification = pipeline.task, pipeline.task.row_features
    if specification is None or not task.classes:
        raise UserError(f"{path}: {pipeline.model} answers no rows of a table with a label; give it a JSONL file")
    if target is None:
        raise UserError(f"{path}: which column holds the labels? Say it with --target COLUMN")
    return read_table(path, specification, target, task.classes)


def table_rows(pipeline: Pipeline, table: LabelledTable) -> list[Labelled]:
    task = pipeline.task
    assert task.row_features is not None
    assert task.classes is not None
    labels = (task.classes[place] for place in table.labels)
    return [Labelled(*row) for row in zip(questions_of(table, task.row_features, type(task)), labels, strict=True)]


def groups(
    pipeline: Pipeline, table: LabelledTable, answers: Sequence[Any], edges: Edges
) -> tuple[dict[str, Any], ...]:
    """Figures by group of an event's probabilities; none of several labels'."""
    task = pipeline.task
    if task.gives_probabilities_of != "event" or task.row_features is None or not task.classes:
        return ()
    probability = np.array([task.probabilities(answer)[1] for answer in answers])
    predicted = np.array([task.is_right(answer, task.classes[1]) for answer in answers])
    found = groups_of(table, task.row_features, edges)
    return tuple(group_record(group, probability, table.labels.astype(float), predicted) for group in found)


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


def changed(task: type[Task[Any, Any]], answers: Sequence[Any], others: Sequence[Any]) -> int:
    """Rows whose prediction, an answer's first log column, is another one."""
    name = task.log_columns[0].name
    return sum(getattr(one, name) != getattr(other, name) for one, other in zip(answers, others, strict=True))


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
