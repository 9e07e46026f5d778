"""From spill files to Parquet: nothing lost, nothing twice, with Redis and without it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from marctl.records import position
from marctl.records.drain import Drained, drain, drain_spill
from marctl.records.kinds import PREDICTION_KIND
from marctl.records.reader import read
from marctl_handlers.redis.log import Declaration
from marctl_handlers.redis.spill import LABEL, PREDICTION, Frame, Spill
from tests.scripts.records.conftest import COLUMNS, Log, declare, label, record
from tests.scripts.records.test_drain import Dies, ids, many, quarantined

DECLARATION = msgspec.json.encode(Declaration("mcqa", COLUMNS, "int"))


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    return tmp_path / "spill"


def put(folder: Path, writer: str, *records: Any) -> Path:
    """As a worker does that cannot reach Redis."""
    frames = [Frame(LABEL if hasattr(each, "label") else PREDICTION, msgspec.msgpack.encode(each)) for each in records]
    assert Spill(folder, writer).append(DECLARATION, frames)
    return folder / f"{writer}.spill"


def test_spilled_records_come_out_without_redis(client: redis.Redis, spill: Path, tmp_path: Path) -> None:
    put(spill, "w1", *map(record, many(250)), label("id-3", 1))
    put(spill, "w2", record("other", writer="w2"))
    assert drain_spill(tmp_path / "log", spill, 100) == Drained(predictions=251, labels=1, files=5)
    assert sorted(ids(tmp_path / "log")) == sorted([*many(250), "other"])
    assert [row["true_label"] for row in read(tmp_path / "log").to_pylist() if row["prediction_id"] == "id-3"] == [1]
    assert list(spill.iterdir()) == []
    assert drain_spill(tmp_path / "log", spill) == Drained()


def test_both_ways_lead_to_one_log(client: redis.Redis, log: Log, spill: Path, tmp_path: Path) -> None:
    log(record("streamed", sequence=1))
    put(spill, "w", record("spilled", sequence=2))
    assert drain(client, tmp_path / "log", spill).predictions == 2
    assert sorted(row["prediction_id"] for row in read(tmp_path / "log", client=client).to_pylist()) == [
        "spilled",
        "streamed",
    ]


def test_what_a_killed_worker_was_writing_goes_to_quarantine(client: redis.Redis, spill: Path, tmp_path: Path) -> None:
    path = put(spill, "w", record("a"), record("b"))
    os.truncate(path, path.stat().st_size - 3)
    assert drain_spill(tmp_path / "log", spill) == Drained(predictions=1, files=1, rejected=1)
    [left] = quarantined(tmp_path / "log")
    assert set(left["fields"]) == {"torn"}


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x09\x00\x00\x00\x01x", b"\xff" * 100])
def test_a_file_of_something_else_harms_nothing(spill: Path, tmp_path: Path, content: bytes) -> None:
    spill.mkdir()
    (spill / "x.spill").write_bytes(content)
    assert drain_spill(tmp_path / "log", spill).rejected == bool(content)
    assert list(spill.iterdir()) == []


def dying(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, which kills instead when its turn has come."""

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Dies
        return real(*args, **kwargs)

    return call


def test_wherever_it_dies_no_spilled_record_is_lost_or_doubled(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step to the disk and to Redis is a point to die at."""
    expected, points = [*many(40), *(f"streamed-{i}" for i in range(20))], 0
    for point in range(1, 200):
        client.flushall()
        declare(client, Declaration("mcqa", COLUMNS, "int"))
        folder, spill = tmp_path / f"{point}", tmp_path / f"{point}-spill"
        for writer, first in (("w1", 0), ("w2", 20)):
            # The last ones of a step are another version's, so that a smaller step does not write to the same files.
            made = (record(f"id-{first + i}", version=f"{i // 13}.0") for i in range(20))
            put(spill, writer, *made, label(writer, 1))
        log(*(record(f"streamed-{i}") for i in range(20)))
        left = [point]
        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (client, "xtrim"), (Path, "unlink"), (Path, "rename")):
                patch.setattr(owner, name, dying(getattr(owner, name), left))
            try:
                drain(client, folder, spill, step_records=15)
            except Dies:
                points += 1
        finished = left[0] > 0
        # Redis may be away when it is started again: what was pending from it waits.
        drain_spill(folder, spill, step_records=12)
        drain(client, folder, spill, step_records=12)
        assert sorted(ids(folder)) == sorted(expected), point
        assert list(spill.iterdir()) == []
        if finished:
            break
    assert finished
    assert points >= 20


def test_workers_write_while_their_files_are_taken(spill: Path, tmp_path: Path) -> None:
    stop, written = threading.Event(), [0] * 4

    def work(number: int) -> None:
        mine = Spill(spill, f"w{number}")
        while not stop.is_set():
            made = record(f"{number}-{written[number]}", writer=f"w{number}", sequence=written[number] + 1)
            assert mine.append(DECLARATION, [Frame(PREDICTION, msgspec.msgpack.encode(made))])
            written[number] += 1
            time.sleep(0.0005)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    spill.mkdir()
    for worker in workers:
        worker.start()
    for _ in range(20):
        drain_spill(tmp_path / "log", spill)
    stop.set()
    for worker in workers:
        worker.join()
    drain_spill(tmp_path / "log", spill)
    found = ids(tmp_path / "log")
    assert len(found) == len(set(found)) == sum(written) > 100
    assert position.peek(tmp_path / "log" / PREDICTION_KIND.name).missing == 0


def test_a_gap_in_a_workers_numbers_is_a_lost_record(
    client: redis.Redis, spill: Path, log: Log, tmp_path: Path
) -> None:
    """Whichever way the others came, and in whichever order."""
    put(spill, "w", *(record(f"{i}", writer="w", sequence=i) for i in (8, 9, 10)))
    log(*(record(f"{i}", writer="w", sequence=i) for i in (1, 2, 3, 6)), record("x", writer="v", sequence=2))
    drain(client, tmp_path, spill)
    assert position.peek(tmp_path / "predictions").missing == 4
    log(record("7", writer="w", sequence=7))
    drain(client, tmp_path, spill)
    assert position.peek(tmp_path / "predictions").missing == 3


def test_losses_of_forgotten_workers_are_still_counted() -> None:
    here = position.Position()
    for i in range(2 * position.WRITERS):
        here = here.counting([(f"w{i}", 1), (f"w{i}", 3)], 0)
    assert len(here.writers) == position.WRITERS
    assert (here.missing, here.drained) == (2 * position.WRITERS, 4 * position.WRITERS)
    assert json.loads(msgspec.json.encode(here))["drained"] == here.drained
