"""Counts jobs and rows for the stack's Prometheus page."""

from __future__ import annotations

from collections import Counter

from marctl.batch.service.records import OVER, UNDER_WAY, Record, Records
from marctl.core.batch_jobs import JobFigures, Status


class Ended:
    """Counts jobs as they end."""

    def __init__(self) -> None:
        self._jobs: dict[Status, int] = dict.fromkeys(OVER, 0)
        self._rows: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        self._jobs[record.status] += 1
        self._rows.update(record.rows or {})

    def figures(self, records: Records) -> JobFigures:
        """Reads the progress of the jobs that run."""
        everything = records.all()
        running = [records.figures(record.id) for record in everything if record.status in UNDER_WAY]
        known = [figures for figures in running if figures is not None]
        statuses = Counter(record.status for record in everything)
        return JobFigures(
            unfinished={status: statuses[status] for status in ("queued", *UNDER_WAY)},
            ended=dict(self._jobs),
            predicted_rows=self._rows["predicted"],
            failed_rows=self._rows["failed"],
            rows_left=sum(figures.total - figures.rows for figures in known),
            rows_per_s=sum(figures.rate for figures in known),
        )
