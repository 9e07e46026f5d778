"""From the streams to files: nothing lost, nothing twice, whenever the drain dies."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from marctl.core.errors import UserError
from marctl.records import drain as draining
from marctl.records import files
from marctl.records.drain import DRAINER, Busy, Drained, drain
from marctl.records.kinds import KINDS, PREDICTION_KIND
from marctl.records.reader import batches, read, read_kind
from marctl.stack import redis_server as redis_servers
from marctl_handlers.core.columns import LogColumn
from marctl_handlers.redis.log import DECLARATIONS, IDENTITY, LABELS, PREDICTIONS, SALT, Declaration
from tests.live.envoys import until
from tests.redis_servers import TestRedis, memory_left
from tests.scripts.records.conftest import COLUMNS, NOON_US, Log, declare, label, record

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
    assert (a["input"], a["sequence"], a["shadow"], a["true_label"]) == ('{"é": 1}', 7, False, None)
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
    log(record("b", confidence=None, probabilities=None, handler_ms=None, input_hash=None))
    drain(client, tmp_path)
    schemas = [pq.read_schema(path) for path in tmp_path.rglob("*.parquet")]
    assert len(schemas) == 2
    assert all(schema.equals(PREDICTION_KIND.schema(COLUMNS)) for schema in schemas)
    assert [(field.name, str(field.type)) for field in schemas[0]] == [
        ("stream_id", "string"),
        ("prediction_id", "string"),
        ("time", "timestamp[us, tz=UTC]"),
        ("digest", "string"),
        ("code", "int32"),
        ("error", "string"),
        ("experiment", "string"),
        ("role", "string"),
        ("user", "string"),
        ("queue_ms", "double"),
        ("batch_ms", "double"),
        ("handler_ms", "double"),
        ("cache", "string"),
        ("fallback_from", "string"),
        ("shadow", "bool"),
        ("traceparent", "string"),
        ("input", "string"),
        ("input_hash", "string"),
        ("writer", "string"),
        ("sequence", "int64"),
        ("prediction", "int64"),
        ("confidence", "double"),
        ("probabilities", "list<element: double>"),
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
            client.delete(PREDICTIONS, DRAINER)
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
    script = "import sys; from marctl.cli import main; print('begun', flush=True); main(prog_name='marctl')"
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


def test_a_second_drain_is_refused(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "WAIT_S", 0.2)
    draining.claim(client, tmp_path / "one")
    with draining.alone(tmp_path / "one", 0), pytest.raises(Busy, match="another drain writes to"):
        drain(client, tmp_path / "one")
    with pytest.raises(Busy, match=r"is being drained to .*one"):
        drain(client, tmp_path / "two")
    draining.release(client, tmp_path / "two")
    assert client.exists(DRAINER), "only the holder releases it"
    assert drain(client, tmp_path / "one") == Drained()
    assert drain(client, tmp_path / "two") == Drained()


def test_of_drains_that_claim_at_once_one_wins(redis_server: TestRedis, client: redis.Redis, tmp_path: Path) -> None:
    def claim(i: int) -> bool:
        try:
            draining.claim(redis_servers.connect(redis_server.url), tmp_path / f"{i}")
        except Busy:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            client.delete(DRAINER)
            assert sum(threads.map(claim, range(8))) == 1


def test_another_redis_is_drained_from_its_beginning(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """Its entries' ids may be lower than those that the folder holds, whatever salt its workers gave it."""
    client.set(SALT, "same")
    log(record("a"))
    drain(client, tmp_path)
    keys = client.hgetall(DECLARATIONS)
    client.flushall()
    client.set(SALT, "same")
    client.hset(DECLARATIONS, mapping=keys)
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


def quarantined(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def test_what_is_not_a_record_goes_to_quarantine_and_harms_no_other(
    client: redis.Redis, log: Log, tmp_path: Path
) -> None:
    log(record("a"))
    client.xadd(PREDICTIONS, {"x": "y"})
    client.xadd(PREDICTIONS, {"r": b"\xc1 garbage"})
    client.xadd(PREDICTIONS, {"r": b""})
    client.xadd(LABELS, {"r": b"\x01"})
    log(record("../../etc", model="../../etc"), record("far", time_us=10**18))
    log(record("undeclared", declaration="nobody's"), record("wrong", prediction="a knife"))
    log(record("unknown column", outcome={"colour": "red"}), record("large", prediction=2**63), label("a", 2**64 - 1))
    log(record("b"))
    done = drain(client, tmp_path)
    assert done == Drained(predictions=2, files=1, rejected=11)
    assert sorted(ids(tmp_path)) == ["a", "b"]
    found = quarantined(tmp_path)
    assert len(found) == 11
    assert b"\xc1 garbage" in [base64.b64decode(each["fields"].get("r", "")) for each in found]
    for why in ("no field 'r'", "nothing declares its outcome", "Expected `int | null`, got `str`", "unknown field"):
        assert any(why in each["why"] for each in found), why
    assert drain(client, tmp_path) == Drained()
    assert len(quarantined(tmp_path)) == 11


def test_a_record_of_a_later_version_of_the_code_is_read(client: redis.Redis, tmp_path: Path) -> None:
    """It may have fields that this code does not know."""
    fields = msgspec.to_builtins(record("a")) | {"something": {"more": 1}}
    client.xadd(PREDICTIONS, {"r": msgspec.msgpack.encode(fields)})
    assert drain(client, tmp_path).predictions == 1


def test_records_of_archives_that_write_arrays_are_drained(client: redis.Redis, tmp_path: Path) -> None:
    """An archive brings the code that it was built with."""
    fields = ["a", NOON_US, "quiz", "1.0", "d" * 64, 1, 0.75, [0.25, 0.75], 5.0, "hit", None, True, "u", None, "h", "w"]
    client.xadd(PREDICTIONS, {"r": msgspec.msgpack.encode([*fields, 1])})
    client.xadd(PREDICTIONS, {"r": msgspec.msgpack.encode(["b", *fields[1:5], None, None, None, *fields[8:], 2])})
    client.xadd(LABELS, {"r": msgspec.msgpack.encode(["a", 1, NOON_US, "feedback"])})
    assert drain(client, tmp_path) == Drained(predictions=2, labels=1, files=2)
    a, b = read(tmp_path, model="quiz").to_pylist()
    assert (a["prediction"], a["probabilities"], a["handler_ms"], a["shadow"]) == (1, [0.25, 0.75], 5.0, True)
    assert (a["true_label"], b["prediction"], b["code"]) == (1, None, 200)


def test_files_that_an_earlier_drain_wrote_are_read_with_todays(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    place = tmp_path / "predictions" / "date=2025-11-20" / "model=mcqa" / "version=1.0"
    place.mkdir(parents=True)
    utc = pa.timestamp("us", tz="UTC")
    old = {"stream_id": ["1-1"], "prediction_id": ["old"], "prediction": pa.array([1], pa.int32())}
    old |= {"time": pa.array([NOON_US - 24 * HOUR_US], utc), "latency_ms": [7.0], "shadow": [False]}
    pq.write_table(pa.table(old), place / "1-1_1-1.parquet")
    (tmp_path / "predictions" / "_position.json").write_text('{"stream": "another", "done": "1-1"}')
    log(record("new"))
    drain(client, tmp_path)
    rows = sorted(read(tmp_path).to_pylist(), key=lambda row: row["time"])
    assert [(row["prediction_id"], row["handler_ms"], row["code"]) for row in rows] == [
        ("old", 7.0, 200),
        ("new", 5.0, 200),
    ]
    assert "latency_ms" not in rows[0]


def test_each_model_has_the_columns_that_its_task_declares(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    columns = (LogColumn("price", "float"), LogColumn("currency", "str"), LogColumn("sure", "bool"))
    declare(client, Declaration("fare", columns, "float"))
    log(record("a"), record("b", model="fare", outcome={"price": 12, "currency": "EUR", "sure": True}))
    log(record("c", model="fare", outcome={"price": 8.5}), label("b", 11.5, model="fare"), label("a", 1))
    drain(client, tmp_path)
    rows = {row["prediction_id"]: row for row in read(tmp_path, model="fare").to_pylist()}
    assert (rows["b"]["price"], rows["b"]["currency"], rows["b"]["sure"], rows["b"]["true_label"]) == (
        12.0,
        "EUR",
        True,
        11.5,
    )
    assert (rows["c"]["price"], rows["c"]["currency"], rows["c"]["true_label"]) == (8.5, None, None)
    assert "prediction" not in rows["b"]
    both = {row["prediction_id"]: row for row in read(tmp_path).to_pylist()}
    assert (both["a"]["prediction"], both["a"]["price"], both["b"]["prediction"]) == (1, None, None)


def test_a_column_may_be_a_list_of_texts(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    declare(client, Declaration("fare", (LogColumn("price", "float"), LogColumn("imputed", "strs")), "float"))
    outcomes = [{"price": 1.0, "imputed": ["income", "a, b"]}, {"price": 2.0, "imputed": []}, {"price": 3.0}]
    log(*(record(f"id-{i}", model="fare", outcome=outcome) for i, outcome in enumerate(outcomes)))
    for _ in range(2):
        rows = {row["prediction_id"]: row["imputed"] for row in read(tmp_path, client=client).to_pylist()}
        assert rows == {"id-0": ["income", "a, b"], "id-1": [], "id-2": None}
        drain(client, tmp_path)


def test_a_task_may_name_its_columns_as_it_likes(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """Also as columns that every record has for something else."""
    columns = (LogColumn("label", "str"), LogColumn("time", "float"), LogColumn("code", "int"))
    declare(client, Declaration("mood", columns, "str"))
    log(record("a", model="mood", outcome={"label": "good", "time": 0.5, "code": 7}), label("a", "bad", model="mood"))
    for _ in range(2):
        [row] = read(tmp_path, model="mood", client=client).to_pylist()
        assert (row["label"], row["outcome_time"], row["outcome_code"], row["code"]) == ("good", 0.5, 7, 200)
        assert row["true_label"] == "bad"
        drain(client, tmp_path)


def test_models_whose_columns_contradict_are_read_one_at_a_time(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    declare(client, Declaration("sentiment", (LogColumn("prediction", "str"),), "str"))
    log(
        record("a"),
        record("b", model="sentiment", outcome={"prediction": "good"}),
        label("b", "bad", model="sentiment"),
    )
    for _ in range(2):
        with pytest.raises(UserError, match=r"read one (model )?at a time"):
            read(tmp_path, client=client)
        [row] = read(tmp_path, model="sentiment", client=client).to_pylist()
        assert (row["prediction"], row["true_label"]) == ("good", "bad")
        drain(client, tmp_path)


def test_failures_are_records_with_their_reason(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(record("a", prediction=None, code=504, error="out_of_time", role="split", experiment="x"))
    drain(client, tmp_path)
    [row] = read(tmp_path).to_pylist()
    assert (row["code"], row["error"], row["prediction"]) == (504, "out_of_time", None)
    assert (row["role"], row["experiment"]) == ("split", "x")


def test_a_log_is_read_in_pieces(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    log(*(record(name, version=f"{i % 3}.0") for i, name in enumerate(many(600))))
    drain(client, tmp_path, step_records=100)
    schema, found = batches(tmp_path, columns=["prediction_id", "true_label"])
    pieces = list(found)
    assert schema.names == ["prediction_id", "true_label"]
    assert all(piece.schema == schema for piece in pieces)
    assert max(piece.num_rows for piece in pieces) <= 100
    assert sorted(name for piece in pieces for name in piece["prediction_id"].to_pylist()) == sorted(many(600))


def test_a_full_redis_is_drained(redis_server: TestRedis, client: redis.Redis, log: Log, tmp_path: Path) -> None:
    """It takes no claim, and needs it more than ever."""
    log(*map(record, many(50)))
    client.set(IDENTITY, "named by the workers")
    limits = client.config_get("maxmemory*")
    memory_left(client, -100_000)
    try:
        assert drain(client, tmp_path).predictions == 50
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            client.config_set(name, limits[name])


def test_what_is_not_drained_yet_can_be_read_too_and_comes_once(client: redis.Redis, log: Log, tmp_path: Path) -> None:
    assert len(read(tmp_path, client=client)) == 0
    log(record("a"), label("a", 0))
    drain(client, tmp_path)
    log(record("b"), label("a", 1, NOON_US + 1), label("b", 0))
    found = read(tmp_path, client=client).to_pylist()
    assert [(row["prediction_id"], row["true_label"]) for row in found] == [("a", 1), ("b", 0)]
    assert [row["true_label"] for row in read(tmp_path).to_pylist()] == [0]


def test_a_drain_between_commit_and_trim_is_not_read_twice(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(*map(record, many(10)))
    with monkeypatch.context() as patch:
        patch.setattr(client, "xtrim", lambda *_, **__: None)
        drain(client, tmp_path)
    assert client.xlen(PREDICTIONS) == 10
    assert read(tmp_path, client=client)["prediction_id"].to_pylist() == many(10)


def test_a_drain_while_a_reader_looks_is_not_read_twice(
    client: redis.Redis, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(*map(record, many(10)))
    real = files.listed

    def listed(folder: Path, *others: Any) -> list[Path]:
        if folder.name == PREDICTION_KIND.name:
            monkeypatch.setattr(files, "listed", real)
            drain(client, tmp_path)
        return real(folder, *others)

    monkeypatch.setattr(files, "listed", listed)
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
        schema, found = read_kind(kind, tmp_path)
        table = pa.Table.from_batches(found, schema)
        assert (len(table), table.schema) == (0, kind.full_schema())
    assert pa.types.is_int64(read(tmp_path).schema.field("true_label").type)
