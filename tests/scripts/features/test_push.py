"""Files into a real store: all of a right file, nothing of a wrong one, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from marctl.core.errors import UserError
from marctl.features import push as pushing
from marctl.features.push import PROGRESS, Push, Pushed
from marctl.features.table import Table, TableInvalid
from marctl_handlers.features.stored import StoredForm
from marctl_handlers.redis.link import FEATURES_URL_VARIABLE
from tests.handlers.features.stored_rows import specification
from tests.redis_servers import TestRedis, memory_left

PROJECT = Path(__file__).parents[3]
CUSTOMER = specification().entities["customer"]
LONG_AGO = 1_600_000_000


@pytest.fixture
def server(redis_server: TestRedis) -> TestRedis:
    redis_server.client.config_set("maxmemory", 0)
    redis_server.client.flushall()
    return redis_server


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: str, name: str = "customers.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


def push(server: TestRedis, path: Path, ttl_s: float | None = None, time_column: str | None = None) -> Pushed:
    return Push(server.client, Table(path, specification(), CUSTOMER, time_column), ttl_s).run(lambda _: None)


def faults(server: TestRedis, path: Path, time_column: str | None = None) -> list[str]:
    with pytest.raises(TableInvalid) as caught:
        push(server, path, None, time_column)
    assert server.client.dbsize() == 0
    return str(caught.value).splitlines()[1:]


def served(server: TestRedis, customer: int) -> dict[str, Any]:
    """What a worker would be given."""
    form = StoredForm(specification().stored("customer"))
    found: Any = server.client.hmget(f"customer:{customer}", form.fields)
    return form.fresh(found, time.time())


def test_a_csv_file_becomes_hashes_that_anybody_can_read(server: TestRedis, write: Callable[..., Path]) -> None:
    path = write("customer,income,home,children,nonsense", "1,1200.5,owner,2,x", '2,,"rent",,')
    began = int(time.time())
    assert push(server, path).rows == 2
    whole: Any = server.client.hgetall("customer:1")
    stamps = {whole.pop(name) for name in (b"@time:income", b"@time:home", b"@time:children")}
    assert whole == {b"income": b"1200.5", b"home": b"owner", b"children": b"2"}
    assert began <= int(stamps.pop()) <= time.time()
    assert not stamps
    assert served(server, 1) == {"income": 1200.5, "home": "owner", "children": 2.0}
    assert served(server, 2) == {"home": "rent"}
    assert server.client.dbsize() == 2


def test_a_parquet_file_says_the_same(server: TestRedis, tmp_path: Path) -> None:
    rows = {"customer": [1, 2], "income": [1200.5, None], "home": ["owner", "rent"], "children": [2, None]}
    path = tmp_path / "customers.parquet"
    parquet.write_table(pa.table(rows), path)
    push(server, path)
    assert served(server, 1) == {"income": 1200.5, "home": "owner", "children": 2.0}
    assert served(server, 2) == {"home": "rent"}


def test_all_faults_are_told_with_row_and_column_and_nothing_is_written(
    server: TestRedis, write: Callable[..., Path]
) -> None:
    path = write(
        "customer,income,home,children",
        "1,twelve,owner,1",
        "2,5,owner,1",
        "x,-1,owner,2.5",
        ",1e999,owner,",
        f"{10**30},5,{'c' * 1001},1",
    )
    told = faults(server, path)
    assert [line.strip().partition(":")[0] for line in told] == [
        "row 1, income",
        "row 3, customer",
        "row 3, income",
        "row 3, children",
        "row 4, customer",
        "row 4, income",
        "row 5, customer",
        "row 5, home",
    ]
    assert told[0].endswith('expected a number, got "twelve"')
    assert told[2].endswith("expected 0 to 1e+06, got -1.0")


def test_very_many_faults_are_counted(server: TestRedis, write: Callable[..., Path]) -> None:
    told = faults(server, write("customer,income", *(f"{i},x" for i in range(1000))))
    assert len(told) == 51
    assert told[-1].strip() == "and 950 more"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["income", "1"], "no column customer"),
        (["customer,age", "1,2"], "no column of a feature of customer; there is income, home, children"),
        (["customer,income,income", "1,2,3"], "column income stands 2 times"),
        (["customer,income,time", "1,2,yesterday"], "row 1, time: expected a time"),
        (["customer,income,time", "1,2,9999999999999"], "row 1, time: expected a time"),
        (["customer,income", "1,2", "1,3"], "row 2: customer 1 stands in an earlier row, too"),
    ],
)
def test_a_file_that_says_too_little_is_refused(
    server: TestRedis, write: Callable[..., Path], lines: list[str], said: str
) -> None:
    assert said in "\n".join(faults(server, write(*lines)))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"\xff\xfe\x00"), ("a.csv", b""), ("a.parquet", b"PAR1"), ("a.txt", b"")]
)
def test_what_is_no_table_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TableInvalid, match=name):
        Table(path, specification(), CUSTOMER, None)


def test_a_row_never_replaces_newer_values(server: TestRedis, write: Callable[..., Path]) -> None:
    """So that the order of pushes does not matter, nor that of the rows of one file."""
    now = int(time.time())
    push(server, write("customer,income,time", f"1,30,{now}", f"1,20,{now - 50}"))
    assert served(server, 1) == {"income": 30.0}
    done = push(server, write("customer,income,children,time", f"1,10,4,{now - 60}"))
    assert (done.rows, done.older) == (1, 0)
    assert served(server, 1) == {"income": 30.0, "children": 4.0}
    assert push(server, write("customer,income,time", f"1,10,{now - 60}")).older == 1
    push(server, write("customer,income,time", f"1,,{now}"))
    push(server, write("customer,income,time", f"1,10,{now - 60}"))
    assert served(server, 1) == {"children": 4.0}


def test_another_writer_s_stamp_counts_and_its_fields_stay(server: TestRedis, write: Callable[..., Path]) -> None:
    now = int(time.time())
    server.client.hset("customer:1", mapping={"income": 5, "score": 7, "@time": now})
    push(server, write("customer,income,time", f"1,10,{now - 60}"))
    assert served(server, 1) == {"income": 5.0}
    push(server, write("customer,income,time", f"1,10,{now}"))
    assert served(server, 1) == {"income": 10.0}
    assert server.client.hget("customer:1", "score") == b"7"


def test_times_are_seconds_or_iso_8601(server: TestRedis, write: Callable[..., Path], tmp_path: Path) -> None:
    push(
        server,
        write("customer,income,at", "1,1,2020-09-13T12:26:40", "2,1,2020-09-13T14:26:40+02:00", f"3,1,{LONG_AGO}"),
        None,
        "at",
    )
    path = tmp_path / "times.parquet"
    times = pa.array([LONG_AGO * 1000], pa.timestamp("ms"))
    parquet.write_table(pa.table({"customer": [4], "income": [1], "time": times}), path)
    push(server, path)
    found = [server.client.hget(f"customer:{i}", "@time:income") for i in range(1, 5)]
    assert found == [str(LONG_AGO).encode()] * 4


def test_an_entity_is_kept_as_long_as_any_push_wants(server: TestRedis, write: Callable[..., Path]) -> None:
    path = write("customer,income", "1,1")
    push(server, path, 100)
    push(server, path, 50)
    assert 99 <= server.client.ttl("customer:1") <= 100
    push(server, path, 200)
    assert 199 <= server.client.ttl("customer:1") <= 200
    push(server, path)
    push(server, path, 50)
    assert server.client.ttl("customer:1") == -1


def test_a_full_store_is_told(server: TestRedis, write: Callable[..., Path]) -> None:
    memory_left(server.client, 0)
    with pytest.raises(UserError, match=r"0 of 1 rows are written; the store refused row 1 \(customer:1\): .*memory"):
        push(server, write("customer,income", "1,1"))


def test_a_key_that_is_no_hash_is_told(server: TestRedis, write: Callable[..., Path]) -> None:
    server.client.set("customer:2", "text")
    with pytest.raises(UserError, match=r"refused row 2 \(customer:2\): .*WRONGTYPE"):
        push(server, write("customer,income", "1,1", "2,2"))


def many(write: Callable[..., Path], rows: int) -> Path:
    return write("customer,income,children", *(f"{i},{i}.5,{i % 7}" for i in range(rows)))


def test_two_pushes_at_once_leave_the_newer_one(
    server: TestRedis, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "AT_ONCE", 10)
    now = int(time.time())
    paths = [
        write("customer,income,time", *(f"{i},{age},{now - age}" for i in range(300)), name=f"{age}.csv")
        for age in (1, 2)
    ]
    clients = [TestRedisClient(server) for _ in paths]
    threads = [threading.Thread(target=push, args=(client, path)) for client, path in zip(clients, paths, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(served(server, i) == {"income": 1.0} for i in range(300))


class TestRedisClient:
    """A connection of its own to the same server."""

    __test__ = False

    def __init__(self, server: TestRedis) -> None:
        from marctl.stack.redis_server import connect

        self.client = connect(server.url)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_push_goes_on_where_it_stopped(
    server: TestRedis, write: Callable[..., Path], tmp_path: Path, how: signal.Signals
) -> None:
    """Rows of an earlier run keep the time of that run."""
    path, spec = many(write, 8_000), tmp_path / "spec.json"
    import msgspec

    spec.write_bytes(msgspec.json.encode(specification()))
    command = [sys.executable, "-c", "from marctl.cli import main; main()", "features", "push", "--spec", str(spec)]
    command += [str(path), "--state", str(tmp_path / "state"), "--json"]
    environ = {**os.environ, FEATURES_URL_VARIABLE: server.url}
    hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    first = subprocess.Popen(command, cwd=PROJECT, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
    deadline = time.monotonic() + 60
    while not server.client.keys(f"{PROGRESS}*") and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(how)
    _, said = first.communicate(timeout=30)
    assert first.returncode == (-how if how is signal.SIGKILL else 130)
    (marker,) = server.client.keys(f"{PROGRESS}*")
    done = int(server.client.get(marker).split()[0])  # type: ignore[union-attr]
    assert 0 < done < 8_000
    if how is signal.SIGINT:
        assert f"{done:,} of 8,000 rows are written; the same command goes on from there" in said
    server.client.delete("customer:0")
    assert push(server, path).resumed == done
    assert not server.client.keys(f"{PROGRESS}*")
    assert server.client.dbsize() == 7_999  # the first row was not written again
    stamps = {server.client.hget(f"customer:{i}", "@time:income") for i in (1, 7_999)}
    assert len(stamps) == 1
