"""What the service counts for the Prometheus page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from marctl.batch.progress import Figures
from marctl.batch.service.figures import Ended
from marctl.batch.service.records import Record, Records
from marctl.core.batch_jobs import BatchPredict
from marctl.stack.metrics.batch_jobs import families

ASKED = BatchPredict(model="mcqa", version="2.0", input="/in/a.csv", output="/out/x")


def record(name: str, status: Any, **changes: Any) -> Record:
    return Record(id=name, asked=ASKED, client="", status=status, submitted_at=name, **changes)


def test_jobs_are_counted_by_status_and_rows_once_they_are_done(tmp_path: Path) -> None:
    records, ended = Records(tmp_path / "jobs"), Ended()
    for each in (record("a", "queued"), record("b", "queued"), record("c", "running"), record("d", "running")):
        records.keep(each)
    records.progress("c").write_bytes(msgspec.json.encode(Figures(30, 100, 1, 2.5, 28.0)))
    for each in (record("e", "done", rows={"read": 9, "predicted": 7, "failed": 2}), record("f", "failed")):
        ended.add(records.keep(each))
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(ended.figures(records))
        for sample in family.samples
    }
    assert samples == {
        ("marctl_batch_jobs", "queued"): 2,
        ("marctl_batch_jobs", "running"): 2,
        ("marctl_batch_jobs", "cancelling"): 0,
        ("marctl_batch_jobs_ended_total", "done"): 1,
        ("marctl_batch_jobs_ended_total", "failed"): 1,
        ("marctl_batch_jobs_ended_total", "cancelled"): 0,
        ("marctl_batch_rows_total", "predicted"): 7,
        ("marctl_batch_rows_total", "failed"): 2,
        ("marctl_batch_rows_left",): 70,
        ("marctl_batch_rows_per_second",): 2.5,
    }
