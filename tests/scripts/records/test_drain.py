"""From the streams to files: nothing lost, nothing twice, whenever the drain dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from handlers.redis.log import LABELS, PREDICTIONS, SALT
from scripts.core.errors import UserError
from scripts.records import drain as draining
from scripts.records.drain import Busy, Drained, drain
from scripts.records.kinds import KINDS, PREDICTION_KIND
from scripts.records.reader import read, read_kind
from tests.live.envoys import until
from tests.redis_servers import TestRedis
from tests.scripts.records.conftest import NOON_US, Log, label, record

HOUR_US = 3_600_000_000
PROJECT = Path(__file__).parents[3]


def ids(folder: Path) -> list[str]:
    """Of every row of every file, read without the reader."""
    files = sorted((folder / "predictions").rglob("[!_]*.parquet"))
    return [name for file in files for name in pq.ParquetFile(file).read()["prediction_id"].to_pylist()]


def written(folder: Path) -> int:
    """Files in place."""
    return len(list((folder / "predictions").rglob("[!_]*.parquet")))


def many(count: int) -> list[str]:
    return [f"id-{i}" for i in range(count)]


def test_records_come_out_as_they_went_in(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(
        record("a", probabilities=[0.1, 0.9], confidence=0.9, cache="hit", user="u", input='{"é": 1}', sequence=7),
        record("b", version="2.0", shadow=True, fallback_from="3.0", prediction=None, probabilities=None),
    )
    assert drain(client, tmp_path) == Drained(predictions=2, files=2)
    a, b = sorted(read(tmp_path).to_pylist(), key=lambda row: row["prediction_id"])
    noon = datetime(2025, 11, 21, 12, tzinfo=UTC)
    assert (a["time"], a["model"], a["version"], a["date"]) == (noon, "mcqa", "1.0", "2025-11-21")
    assert (a["probabilities"], a["confidence"], a["cache"], a["user"]) == ([0.1, 0.9], 0.9, "hit", "u")
    assert (a["input"], a["sequence"], a["shadow"], a["label"]) == ('{"é": 1}', 7, False, None)
    assert (b["version"], b["shadow"], b["fallback_from"], b["prediction"]) == ("2.0", True, "3.0", None)


def test_files_lie_by_date_model_and_version(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a"), record("b", time_us=NOON_US + 12 * HOUR_US), record("c", model="quiz", version="1"))
    drain(client, tmp_path)
    folders = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")}
    assert folders == {
        "predictions/date=2025-11-21/model=mcqa/version=1.0",
        "predictions/date=2025-11-22/model=mcqa/version=1.0",
        "predictions/date=2025-11-21/model=quiz/version=1",
    }
    assert read(tmp_path, version="1")["model"].to_pylist() == ["quiz"]


def test_every_file_has_the_same_schema(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """Also one whose columns are all empty; names and types are a promise."""
    log(record("a", input="x", user="u"))
    drain(client, tmp_path)
    log(record("b", prediction=None, confidence=None, probabilities=None, latency_ms=None, input_hash=None))
    drain(client, tmp_path)
    schemas = [pq.read_schema(path) for path in tmp_path.rglob("*.parquet")]
    assert len(schemas) == 2
    assert all(schema.equals(PREDICTION_KIND.schema()) for schema in schemas)
    assert [(field.name, str(field.type)) for field in schemas[0]] == [
        ("stream_id", "string"),
        ("prediction_id", "string"),
        ("time", "timestamp[us, tz=UTC]"),
        ("digest", "string"),
        ("prediction", "int32"),
        ("confidence", "double"),
        ("probabilities", "list<element: double>"),
        ("latency_ms", "double"),
        ("cache", "string"),
        ("fallback_from", "string"),
        ("shadow", "bool"),
        ("user", "string"),
        ("input", "string"),
        ("input_hash", "string"),
        ("writer", "string"),
        ("sequence", "int64"),
    ]


def test_what_is_drained_leaves_the_stream_and_what_comes_later_follows(
    client: redis.Redis, log: Log, tmp_path: Path
) -> None:
    log(*map(record, many(250)))
    assert drain(client, tmp_path, step_records=100) == Drained(predictions=250, files=3)
    assert client.xlen(PREDICTIONS) == 0
    assert drain(client, tmp_path) == Drained()
    log(record("later"), label("later", 1))
    assert drain(client, tmp_path) == Drained(predictions=1, labels=1, files=2)
    assert sorted(ids(tmp_path)) == sorted([*many(250), "later"])


class Dies(BaseException):
    """As SIGKILL: no clean-up of ours runs before what comes after it."""


def test_wherever_it_dies_nothing_is_lost_or_doubled(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step to the disk and to Redis is a point to die at, before and after it."""
    expected = many(40)

    def dying(real: object, at: list[int], after: bool) -> object:
        def call(*args: object, **kwargs: object) -> object:
            at[0] -= 1
            if at[0] == 0 and not after:
                raise Dies
            result = real(*args, **kwargs)  # type: ignore[operator]  # one of the two below
            if at[0] == 0:
                raise Dies
            return result

        return call

    points = 0
    for after in (False, True):
        for point in range(1, 100):
            client.delete(PREDICTIONS, "marctl:{log}:drain")
            folder = tmp_path / f"{after}-{point}"
            log(*(record(name, version=f"{i % 2}.0") for i, name in enumerate(expected)))
            at = [point]
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", dying(os.replace, at, after))
                patch.setattr(client, "xtrim", dying(client.xtrim, at, after))
                try:
                    drain(client, folder, step_records=20)
                except Dies:
                    points += 1
            finished = at[0] > 0
            drain(client, folder, step_records=25)
            assert sorted(ids(folder)) == sorted(expected), (after, point)
            assert sorted(read(folder)["prediction_id"].to_pylist()) == sorted(expected)
            if finished:
                break
        else:
            pytest.fail("it never came to its end")
    assert points >= 20


def test_killed_again_and_again_while_records_come_it_loses_and_doubles_none(
    redis_server: TestRedis, client: redis.Redis, log: Log, tmp_path: Path
) -> None:
    """SIGKILL for a real process, at random moments."""
    dice, expected = random.Random(5), []
    script = "import sys; from scripts.cli import main; print('begun', flush=True); main(prog_name='marctl')"
    command = [sys.executable, "-c", script, "log", "drain", "--to", str(tmp_path), "--step", "20"]
    command += ["--follow", "--every", "0.1", "--state", str(tmp_path / "none")]
    environ = os.environ | {"REDIS_URL": redis_server.url}
    killed = 0
    for round_ in range(5):
        process = subprocess.Popen(command, cwd=PROJECT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        before = written(tmp_path)
        for i in range(20):
            names = [f"{round_}-{i}-{j}" for j in range(50)]
            expected += names
            log(*(record(name, version=f"{j % 3}.0") for j, name in enumerate(names)))
        until(lambda: written(tmp_path) > before, 60.0)  # noqa: B023  # called within this round
        time.sleep(dice.uniform(0, 0.3))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert killed == 5
    assert len(ids(tmp_path)) > 0
    drain(client, tmp_path)
    assert sorted(ids(tmp_path)) == sorted(expected)
    assert len(expected) == 5000


def test_a_second_drain_is_refused(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    with draining.alone(client, tmp_path / "one"):
        with pytest.raises(Busy, match="another drain writes to"), draining.alone(client, tmp_path / "one"):
            pass
        with pytest.raises(Busy, match=r"is being drained to .*one"):
            drain(client, tmp_path / "two")
    assert drain(client, tmp_path / "two") == Drained()


def test_another_redis_is_drained_from_its_beginning(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """Its entries' ids may be lower than those that the folder holds."""
    log(record("a"))
    drain(client, tmp_path)
    client.flushall()
    client.set(SALT, b"another")
    client.xadd(PREDICTIONS, {"r": msgspec.msgpack.encode(record("b"))}, id="1-1")
    assert drain(client, tmp_path).predictions == 1
    assert sorted(ids(tmp_path)) == ["a", "b"]


def test_files_without_their_position_are_refused(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a"))
    drain(client, tmp_path)
    (tmp_path / "predictions" / "_position.json").unlink()
    with pytest.raises(UserError, match=r"_position.json is missing, so records could come twice"):
        drain(client, tmp_path)
    (tmp_path / "predictions" / "_position.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        drain(client, tmp_path)


def test_what_is_no_record_is_counted_and_harms_no_other(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a"))
    client.xadd(PREDICTIONS, {"x": "y"})
    client.xadd(PREDICTIONS, {"r": b"\xc1 garbage"})
    client.xadd(LABELS, {"r": b"\x01"})
    log(record("../../etc", model="../../etc"), record("b"))
    assert drain(client, tmp_path) == Drained(predictions=2, files=1, rejected=4)
    assert sorted(ids(tmp_path)) == ["a", "b"]


def test_a_record_of_a_later_version_of_the_code_is_read(client: redis.Redis, tmp_path: Path) -> None:
    """It may have fields that this code does not know."""
    fields = [*msgspec.structs.astuple(record("a")), "something", {"more": 1}]
    client.xadd(PREDICTIONS, {"r": msgspec.msgpack.encode(fields)})
    assert drain(client, tmp_path).predictions == 1


def test_what_is_not_drained_yet_can_be_read_too_and_comes_once(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    assert len(read(tmp_path, client=client)) == 0
    log(record("a"), label("a", 0))
    drain(client, tmp_path)
    log(record("b"), label("a", 1, NOON_US + 1), label("b", 0))
    found = read(tmp_path, client=client).to_pylist()
    assert [(row["prediction_id"], row["label"]) for row in found] == [("a", 1), ("b", 0)]
    assert [row["label"] for row in read(tmp_path).to_pylist()] == [0]


def test_a_drain_between_commit_and_trim_is_not_read_twice(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(*map(record, many(10)))
    with monkeypatch.context() as patch:
        patch.setattr(client, "xtrim", lambda *_, **__: None)
        drain(client, tmp_path)
    assert client.xlen(PREDICTIONS) == 10
    assert read(tmp_path, client=client)["prediction_id"].to_pylist() == many(10)


def test_only_what_is_asked_for_is_read(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """From files and from the stream alike; a day's folder ends at midnight, UTC."""
    rows = {f"{hour}": NOON_US + hour * HOUR_US for hour in (-24, -13, -12, 0, 11, 12, 24)}
    log(*(record(name, time_us=time_us) for name, time_us in rows.items()), record("x", model="quiz"))
    noon = datetime(2025, 11, 21, 12, tzinfo=UTC)

    def names(**wanted: object) -> list[str]:
        return sorted(read(tmp_path, client=client, **wanted)["prediction_id"].to_pylist())  # type: ignore[arg-type]

    for _ in range(2):
        assert names(model="quiz") == ["x"]
        assert names(model="mcqa", version="9") == []
        assert names(model="mcqa", since=noon - timedelta(hours=12)) == sorted(["-12", "0", "11", "12", "24"])
        assert names(model="mcqa", until=noon.astimezone(timezone(timedelta(hours=9)))) == sorted(["-24", "-13", "-12"])
        assert names(model="mcqa", since=noon, until=noon + timedelta(hours=12)) == ["0", "11"]
        drain(client, tmp_path)


def test_an_empty_log_has_all_columns(tmp_path: Path) -> None:
    for kind in KINDS:
        table = read_kind(kind, tmp_path)
        assert (len(table), table.schema) == (0, kind.full_schema())
    assert pa.types.is_int64(read(tmp_path).schema.field("label").type)
