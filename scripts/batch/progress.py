"""How far a job is: for a person at a terminal, for a log, and for a service in a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from marctl.batch.output import Planned, Report
from marctl.batch.plan import Unit
from marctl.core.files import write_atomically
from marctl.core.progress import track

WRITE_EVERY_S = 1.0


class Figures(Struct, frozen=True):
    """A job's progress. `rate`: rows a second in this run; `eta_s`: seconds left at that rate, None before it shows."""

    rows: int
    total: int
    failed: int
    rate: float
    eta_s: float | None


class Progress:
    """Counts rows of finished units."""

    def __init__(self, planned: Planned, done: Mapping[int, Report], file: Path | None) -> None:
        self._sizes = {unit.number: size_of(unit) for unit in planned.units}
        self._total = sum(self._sizes.values())
        self._before = sum(self._sizes[number] for number in done)
        self._rows, self._failed = self._before, sum(report.failed for report in done.values())
        self._started: float | None = None
        """When the first unit began: loading the archive is no part of the rate."""
        self._file, self._written = file, 0.0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._show = self._stack.enter_context(track("rows", total=self._total, done=self._rows))
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        self._stack.__exit__(kind, err, trace)

    def advance(self, report: Report) -> None:
        size = self._sizes[report.unit]
        if self._started is None:
            self._started = time.monotonic() - report.seconds
        self._rows += size
        self._failed += report.failed
        self._show(f"{self.figures.rate:,.0f} rows/s, {self._failed:,} failed", size)
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self._write()

    @property
    def figures(self) -> Figures:
        spent = 0.0 if self._started is None else time.monotonic() - self._started
        rate = (self._rows - self._before) / max(spent, 1e-6)
        left = None if not rate else round((self._total - self._rows) / rate, 1)
        return Figures(self._rows, self._total, self._failed, round(rate, 1), left)

    def _write(self) -> None:
        if self._file is not None:
            self._written = time.monotonic()
            write_atomically(self._file, msgspec.json.encode(self.figures))


def size_of(unit: Unit) -> int:
    """Rows to look at; as many as are taken, where that is known."""
    return unit.stop - unit.start if unit.take is None else unit.take
