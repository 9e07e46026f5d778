"""How far an exported model's answers are from the archive's samples, and from PyTorch's in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from marctl.build.reader import Archive
from marctl.core.errors import UserError
from marctl.core.progress import track
from marctl.export.engines import Engine
from marctl.export.rows import Feeds, TooLong, feeds_of
from marctl.train.evaluate import read_rows
from marctl.train.questions import dataset_name
from marctl_handlers.core.portable import Portable


@dataclass(frozen=True)
class Agreement:
    """Of one file of questions. `changed`: answers that are another choice; None where the task chooses nothing."""

    name: str
    questions: int
    changed: int | None
    largest: float
    """Difference of two answers' numbers, as the task measures it (Portable.unit)."""
    left_out: int = 0
    """Questions of which a part that must be kept whole is longer than a row."""

    def record(self) -> dict[str, Any]:
        shared = {"largest_difference": round(self.largest, 7), "left_out": self.left_out}
        changed = {} if self.changed is None else {"changed_share": round(self.changed / self.questions, 5)}
        return {"questions": self.questions, **changed, **shared}


def sample_feeds(archive: Archive, portable: Portable) -> list[Feeds]:
    """The rows of the archive's samples. Raises UserError where there are none."""
    if not archive.samples:
        raise UserError(f"{archive.path}: carries no samples to check an export with; build it with `marctl build`")
    kind = archive.task.question_type
    try:
        return [feeds_of(portable, msgspec.convert(sample.request, kind)) for sample in archive.samples]
    except (msgspec.ValidationError, TooLong) as err:
        raise UserError(f"{archive.path}: a sample that its task does not take: {err}") from err


def check_samples(archive: Archive, portable: Portable, engine: Engine, feeds: Sequence[Feeds]) -> None:
    """Raise UserError listing the samples that are answered otherwise than the archive expects."""
    faults = []
    for i, (sample, rows) in enumerate(zip(archive.samples, feeds, strict=True)):
        answer = portable.answer(engine.run(rows))
        expected = {name: value for name, value in sample.expected.items() if name in answer}
        faults += [f"samples[{i}]: {fault}" for fault in archive.task.differences(expected, answer, archive.tolerance)]
    if faults:
        head = f"{archive.name} {archive.version}: the exported model answers otherwise ({engine.name}); it is not kept"
        raise UserError("\n  ".join([head, *faults]))


def question_feeds(path: Path, archive: Archive, portable: Portable) -> Iterator[Feeds | None]:
    """The rows of each question in a file of JSON lines, None for one that is too long. Raises UserError."""
    for row in read_rows(path, archive.task, labelled=False):
        try:
            yield feeds_of(portable, row.question)
        except TooLong:
            yield None


def agreement(path: Path, feeds: Sequence[Feeds | None], portable: Portable, plain: Engine, made: Engine) -> Agreement:
    """Of all questions of a file, which the two engines answer one by one."""
    changed, largest, choosing = 0, 0.0, True
    asked = [rows for rows in feeds if rows is not None]
    if not asked:
        raise UserError(f"{path}: every question of it is longer than a row of the model")
    with track(f"comparing on {dataset_name(path)}", total=len(asked)) as progress:
        for rows in asked:
            wanted, given = portable.answer(plain.run(rows)), portable.answer(made.run(rows))
            same, distance = portable.compare(wanted, given)
            choosing, changed, largest = same is not None, changed + (same is False), max(largest, distance)
            progress("")
    return Agreement(dataset_name(path), len(asked), changed if choosing else None, largest, len(feeds) - len(asked))
