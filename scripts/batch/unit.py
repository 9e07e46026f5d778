"""Computes one unit: reads its rows, predicts those that the job selects, and commits what came of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from marctl.batch.answers import Table
from marctl.batch.archive import Description
from marctl.batch.ask import Ask
from marctl.batch.formats.block import BadRow, Block
from marctl.batch.job import Job
from marctl.batch.offline import Histories
from marctl.batch.output import Output, Report
from marctl.batch.plan import Unit, sampled
from marctl.batch.questions import Questions, text_length
from marctl.batch.sources import read
from marctl.batch.where import Condition

CALL_ROWS = 512
"""Questions of one `predict`: enough to fill the model's passes with rows of one length, few enough to hold at once."""


class UnitRunner:
    """Holds what all units of a job share; the pipeline is the archive's, loaded."""

    def __init__(self, job: Job, digest: str, description: Description, output: Output, schema: Any, ask: Ask) -> None:
        self._job, self._digest, self._output, self._ask = job, digest, output, ask
        histories = Histories(job.features, ask.stored_features, job.as_of) if job.features and job.as_of else None
        self._questions = Questions(ask.question_type, description.fields, job.mapping, histories)
        self._by_length = not description.has_features
        """Whether rows of one length are computed together: texts of a pass are padded to the longest, or cost more."""
        self._condition = Condition(job.where) if job.where else None
        self._table = Table(schema, job, description.columns)
        self._reads = sorted(
            {job.mapping.get(field.name, field.name) for field in description.fields}
            | set(job.keys.values())
            | (self._condition.columns if self._condition else set())
            | (histories.columns if histories else set())
        )

    def run(self, unit: Unit) -> Report:
        """Raises InputChanged, WriteFailed, and whatever the model's process cannot go on from."""
        started, cpu_started = time.monotonic(), time.process_time()
        source = self._job.sources[unit.source]
        block = self._selected(unit, read(source, unit.rows, self._reads))
        ids = [f"batch-{self._digest[:12]}-{unit.source}-{row}" for row in block.rows]
        answers, times_us = self._answers(block, ids)
        if self._ask.broken:
            os._exit(1)  # another process tries the unit; nothing that this one says can be believed
        good = [place for place, answer in enumerate(answers) if not isinstance(answer, str)]
        bad = [*block.bad, *(BadRow(int(block.rows[i]), a) for i, a in enumerate(answers) if isinstance(a, str))]
        table = self._table.of(
            source.name, block, good, [answers[i] for i in good], [ids[i] for i in good], times_us[good]
        )
        report = Report(
            unit.number,
            self._digest,
            len(answers) + len(block.bad),
            len(good),
            len(bad),
            round(time.monotonic() - started, 3),
            round(time.process_time() - cpu_started, 3),
        )
        self._output.commit(report, table, sorted(bad, key=lambda row: row.row), source.name)
        return report

    def _selected(self, unit: Unit, block: Block) -> Block:
        mask = sampled(self._job, self._job.sources[unit.source], block.rows)
        if self._condition is not None:
            mask = mask & self._condition.mask({name: block.array(name) for name in self._condition.columns})
        if unit.take is not None:
            mask = mask & (np.cumsum(mask) <= unit.take)
        return block if mask.all() else block.where(mask)

    def _refuse_keys(self, block: Block, found: list[Any]) -> None:
        """A key that is of another type than in the file's first rows would be lost."""
        for name, column in self._job.keys.items():
            carried = block.key(column)
            if carried.null_count:
                values = block.values(column)
                for place in np.flatnonzero(carried.is_null()):
                    if values[place] is not None:
                        found[place] = (
                            f"key {name}: expected {carried.type}, as in the first rows, got {values[place]!r}"
                        )

    def _answers(self, block: Block, ids: Sequence[str]) -> tuple[list[Any], Any]:
        """Per row an answer, or the reason why there is none; and when, in microseconds since 1970."""
        found: list[Any] = self._questions.of(block)
        self._refuse_keys(block, found)
        times_us = np.zeros(len(found), np.int64)
        waiting = [i for i, question in enumerate(found) if not isinstance(question, str)]
        if self._by_length:
            waiting.sort(key=lambda i: text_length(found[i]))
        for start in range(0, len(waiting), CALL_ROWS):
            places = waiting[start : start + CALL_ROWS]
            answers = self._ask.predict([found[i] for i in places], [ids[i] for i in places])
            times_us[places] = time.time_ns() // 1000
            for place, answer in zip(places, answers, strict=True):
                found[place] = reason_of(answer) if isinstance(answer, Exception) else answer
        return found, times_us


def reason_of(error: Any) -> str:
    """The short name and the text that a client would get."""
    return f"{error.error}: {error}"
