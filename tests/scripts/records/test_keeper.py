"""The log keeps itself: drained without a command, through all that befalls Redis and the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from marctl.cli import main
from marctl.records import files, keeper
from marctl.records.drain import drain
from marctl.records.keeper import Keeper, Limits, connector, figures_of, limits_of, save_limits
from marctl.records.reader import read
from marctl_handlers.core.settings import Log as LogSettings
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.redis.log import Declaration, PredictionLog, PredictionRecord
from tests.handlers.redis.test_log import answered, small_disk, until
from tests.redis_servers import TestRedis
from tests.scripts.records.conftest import COLUMNS, Log, label
from tests.scripts.records.conftest import record as older_record
from tests.scripts.records.test_drain import ids, many
from tests.scripts.records.test_files import DAY_US, drained, now_us
from tests.scripts.records.test_spilled import put

Keep = Callable[..., Keeper]


def record(prediction_id: str, **fields: Any) -> PredictionRecord:
    """Of today: older ones leave by their age."""
    return older_record(prediction_id, **{"time_us": now_us()} | fields)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def keep(redis_server: TestRedis, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    """Starts keepers of `tmp_path / "log"` that look several times a second."""
    for name, value in {"POLL_S": 0.05, "RETRY_S": 0.1, "TIDY_S": 0.5, "TIMEOUT_S": 1.0}.items():
        monkeypatch.setattr(keeper, name, value)
    started: list[Keeper] = []

    def start(folder: Path = tmp_path / "log", url: str = redis_server.url) -> Keeper:
        started.append(Keeper(folder, connector(lambda: url), tmp_path / "spill", told.append, every_s=0.2))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_records_reach_the_files_by_themselves(
    client: redis.Redis, log: Log, keep: Keep, tmp_path: Path, told: list[str]
) -> None:
    keep()
    log(*map(record, many(100)), label("id-3", 1, now_us()))
    until(lambda: len(ids(tmp_path / "log")) == 100)
    put(tmp_path / "spill", "w", record("spilled"))
    until(lambda: len(ids(tmp_path / "log")) == 101)
    until(lambda: (figures_of(tmp_path / "log") or figures("")).predictions == 101)
    found = figures(tmp_path / "log")
    assert (found.labels, found.quarantined, found.trouble, found.days) == (1, 0, None, 1)
    assert found.kept_bytes > 0
    assert told == []


def figures(folder: Path | str) -> keeper.Figures:
    found = figures_of(Path(folder))
    return found or keeper.Figures("", 0, 0, 0, 0, 0, 0, 0, 0, None, 0, Limits(), None)


def test_a_keeper_goes_on_when_redis_comes_back(tmp_path: Path, told: list[str], keep: Keep) -> None:
    """A worker that lost it spills; nothing is lost, and each failure is told once."""
    server = TestRedis(tmp_path)
    keep(url=server.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARCTL_SPILL", str(tmp_path / "spill"))
        link = RedisLink(server.url, reply_timeout_s=1.0)
        worker = PredictionLog(LogSettings(), Declaration("quiz", COLUMNS, "int"), "1.0", "", link)
    answered(worker, "before")
    until(lambda: ids(tmp_path / "log") == ["before"])
    server.kill()
    answered(worker, "without a reply")  # waits for Redis, which may have it
    until(lambda: not worker._link.available)
    for i in range(50):
        answered(worker, f"during-{i}")
    until(lambda: len(ids(tmp_path / "log")) == 51)
    until(lambda: bool(told))
    server.start()
    answered(worker, "after")
    until(lambda: len(ids(tmp_path / "log")) == 53)
    until(lambda: len(told) == 2)
    worker.close()
    assert "Redis does not answer (ConnectionError)" in told[0]
    assert "all is well again" in told[1]
    until(lambda: figures(tmp_path / "log").lost == 0)
    server.stop()


def test_a_full_disk_is_told_and_nothing_is_lost(
    client: redis.Redis, log: Log, keep: Keep, tmp_path: Path, told: list[str]
) -> None:
    with small_disk(tmp_path / "disk", 200 << 10) as disk:
        filler = disk / "filler"
        with filler.open("wb") as file:
            file.write(b"x" * (180 << 10))
        folder = disk / "log"
        stop = keep(folder).stop
        log(*(record(name, input=f"{i:x>3000}") for i, name in enumerate(many(300))))
        log(*(record(f"b{i}", version="2.0", input=str(hash(str(i)) ** 60)) for i in range(300)))
        until(lambda: any("No space left" in line for line in told))
        filler.unlink()
        until(lambda: len(ids(folder)) == 600)
        until(lambda: "all is well again" in told[-1])
        stop()


def test_a_drain_by_hand_goes_between(client: redis.Redis, log: Log, keep: Keep, tmp_path: Path) -> None:
    keep()
    expected = []
    for i in range(20):
        names = [f"{i}-{j}" for j in range(20)]
        expected += names
        log(*map(record, names))
        drain(client, tmp_path / "log", tmp_path / "spill")
    assert sorted(ids(tmp_path / "log")) == sorted(expected)


def test_limits_are_kept_to(client: redis.Redis, log: Log, keep: Keep, tmp_path: Path, told: list[str]) -> None:
    for i in range(4):
        drained(client, log, tmp_path / "log", 2, now_us() - i * DAY_US, f"day-{i}")
    save_limits(tmp_path / "log", Limits(days=2))
    keep()
    until(lambda: len(files.days(tmp_path / "log")) == 3)
    until(lambda: figures(tmp_path / "log").removed_days == 1)
    assert "is over the limits and was removed" in told[0]


def test_limits_and_figures_from_the_shell(client: redis.Redis, log: Log, keep: Keep, tmp_path: Path) -> None:
    def marctl(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["log", *arguments, "--state", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    assert marctl("keep", "--gib", "1.5").endswith("keeps 90 days, 1.5 GiB\n")
    assert json.loads(marctl("keep", "--days", "30", "--json")) == {"days": 30.0, "bytes": 3 << 29}
    assert limits_of(tmp_path / "log") == Limits(30.0, 3 << 29)
    keep()
    log(record("a", writer="w", sequence=1), record("b", writer="w", sequence=4))
    until(lambda: figures(tmp_path / "log").predictions == 2)
    assert "2 records; 0 in quarantine" in marctl("status")
    assert json.loads(marctl("status", "--json"))["lost"] == 2


def test_without_a_keeper_the_shell_says_how_to_get_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["log", "status", "--state", str(tmp_path)])
    assert (done.exit_code, "`marctl up` does" in done.output) == (1, True)


def test_a_keeper_without_redis_waits(tmp_path: Path, told: list[str]) -> None:
    alone = Keeper(tmp_path / "log", connector(lambda: None), None, told.append)
    alone.attend()
    assert (told, figures(tmp_path / "log").undrained) == ([], None)


def test_a_keepers_log_is_read_at_any_moment(client: redis.Redis, log: Log, keep: Keep, tmp_path: Path) -> None:
    """Every record once: in the stream, in files under way, in files being merged."""
    keep()
    expected: list[str] = []
    for i in range(40):
        names = [f"{i}-{j}" for j in range(5)]
        expected += names
        log(*map(record, names))
        found = read(tmp_path / "log", client=client)["prediction_id"].to_pylist()
        assert sorted(found) == sorted(expected)
