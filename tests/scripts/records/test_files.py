"""Small files become few, the oldest days leave, and a reader sees every record once meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from marctl.records import files
from marctl.records.drain import drain
from marctl.records.reader import read
from marctl_handlers.core.columns import LogColumn
from marctl_handlers.redis.log import Declaration
from tests.scripts.records.conftest import Log, declare, record
from tests.scripts.records.test_drain import Dies, many
from tests.scripts.records.test_spilled import dying

DAY_US = 86_400_000_000


def now_us() -> int:
    return time.time_ns() // 1000


def names(folder: Path) -> list[str]:
    return sorted(read(folder)["prediction_id"].to_pylist())


def pretend_age(paths: Iterable[Path], age_s: float) -> None:
    """Let files look as if they were written so long ago."""
    then = time.time() - age_s
    for path in paths:
        os.utime(path, (then, then))


def drained(client: redis.Redis, log: Log, folder: Path, count: int, time_us: int, prefix: str = "id") -> list[str]:
    """So many files of five records each."""
    made = [f"{prefix}-{i}" for i in range(5 * count)]
    log(*(record(name, time_us=time_us) for name in made))
    drain(client, folder, step_records=5)
    return made


def test_small_files_are_merged_and_every_record_is_read_once(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    made = drained(client, log, tmp_path, files.FEW, now_us())
    assert files.compact(tmp_path / "predictions") == files.FEW
    on_disk = files.scan(tmp_path / "predictions")
    assert len(on_disk) == files.FEW + 1, "whoever is reading the small ones can finish"
    assert names(tmp_path) == sorted(made)
    pretend_age(on_disk, files.GRACE_S + 1)
    files.compact(tmp_path / "predictions")
    assert len(files.scan(tmp_path / "predictions")) == 1
    assert names(tmp_path) == sorted(made)
    assert files.compact(tmp_path / "predictions") == 0


def test_few_or_large_files_are_left_alone(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained(client, log, tmp_path, files.FEW - 1, now_us())
    assert files.compact(tmp_path / "predictions") == 0
    drained(client, log, tmp_path, 5, now_us())
    monkeypatch.setattr(files, "LARGE_BYTES", 10)
    assert files.compact(tmp_path / "predictions") == 0


def test_a_past_day_ends_as_one_file(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    made = drained(client, log, tmp_path, 3, now_us() - 2 * DAY_US)
    assert files.compact(tmp_path / "predictions") == 0, "more may come"
    pretend_age(files.scan(tmp_path / "predictions"), files.SETTLED_S + 1)
    assert files.compact(tmp_path / "predictions") == 3
    assert names(tmp_path) == sorted(made)


def test_wherever_merging_dies_every_record_is_read_once(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it, and after each single step."""
    made, place = sorted(drained(client, log, tmp_path, files.FEW, now_us())), tmp_path / "predictions"
    for point in range(1, files.FEW + 5):
        left = [point]
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace, left))
            patch.setattr(Path, "unlink", dying(Path.unlink, left))
            with suppress(Dies):
                files.compact(place, time.time() + (files.GRACE_S + 1) * (point > 2))
        assert names(tmp_path) == made, point
        assert len(files.scan(place)) == (files.FEW + (point == 2) if point <= 2 else max(1, files.FEW + 2 - point))


def test_files_of_different_columns_are_merged(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """A version that was built anew may declare more; what it keeps is there for the rows that have it."""
    declare(client, Declaration("fare", (LogColumn("price", "int"),), "str"))
    log(*(record(name, model="fare", time_us=now_us(), outcome={"price": 3}) for name in many(40)))
    drain(client, tmp_path, step_records=5)
    columns = (LogColumn("price", "float"), LogColumn("currency", "str"))
    declare(client, Declaration("fare", columns, "str"))
    log(*(record(f"new-{i}", model="fare", time_us=now_us(), outcome={"price": 3.5}) for i in range(40)))
    drain(client, tmp_path, step_records=5)
    assert files.merge(tmp_path / "predictions", *of_one_folder(tmp_path)) == 16
    rows = read(tmp_path, model="fare").to_pylist()
    assert sorted({row["price"] for row in rows}) == [3.0, 3.5]
    assert {row["currency"] for row in rows} == {None}


def test_files_whose_columns_contradict_stay_as_they_are(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    for kind, value in (("int", 3), ("str", "three")):
        declare(client, Declaration("fare", (LogColumn("price", kind),), "str"))  # type: ignore[arg-type]
        log(record(f"{value}", model="fare", outcome={"price": value}))
        drain(client, tmp_path)
    assert files.merge(tmp_path / "predictions", *of_one_folder(tmp_path)) == 0
    assert files.compact(tmp_path / "predictions") == 0
    assert len(files.scan(tmp_path / "predictions")) == 2


def of_one_folder(folder: Path) -> tuple[Path, list[Path]]:
    paths = files.listed(folder / "predictions")
    assert len({path.parent for path in paths}) == 1
    return paths[0].parent, paths


def test_large_files_are_merged_in_pieces(tmp_path: Path) -> None:
    place = tmp_path / "predictions" / "date=2025-11-21"
    place.mkdir(parents=True)
    for i in range(3):
        pq.write_table(pa.table({"prediction_id": [f"{i}-{j}" for j in range(200_000)]}), place / f"{i}.parquet")
    assert files.merge(tmp_path / "predictions", place, files.listed(place)) == 3
    with pq.ParquetFile(files.listed(place)[0]) as merged:
        assert (merged.metadata.num_rows, merged.num_row_groups > 3) == (600_000, True)


@pytest.fixture
def ten_days(client: redis.Redis, log: Log, tmp_path: Path) -> date:
    """A log of ten days, quarantine included; returns the last one."""
    for i in range(10):
        drained(client, log, tmp_path, 2, now_us() - i * DAY_US, f"day-{i}")
    today = datetime.now(UTC).date()
    old = tmp_path / "labels" / files.QUARANTINE / f"date={today - timedelta(days=9)}"
    old.mkdir(parents=True)
    (old / "x.jsonl").write_text("{}\n")
    return today


def test_the_oldest_days_leave_first(tmp_path: Path, ten_days: date) -> None:
    assert files.remove_days(tmp_path, 7, None, ten_days) == [ten_days - timedelta(days=i) for i in (9, 8)]
    assert list(files.days(tmp_path)) == [ten_days - timedelta(days=i) for i in range(7, -1, -1)]
    assert not list((tmp_path / "labels").rglob("*.jsonl"))
    newest_four = sum(map(files.bytes_of, list(files.days(tmp_path).values())[-4:]))
    gone = files.remove_days(tmp_path, None, newest_four, ten_days)
    assert gone == [ten_days - timedelta(days=i) for i in (7, 6, 5, 4)]


def test_today_stays_whatever_the_limits(tmp_path: Path, ten_days: date) -> None:
    files.remove_days(tmp_path, 0.001, 1, ten_days)
    assert list(files.days(tmp_path)) == [ten_days]
    assert len(names(tmp_path)) == 10
