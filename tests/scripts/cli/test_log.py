"""`marctl log`, as far as it needs no stack."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result

from marctl.cli import main
from tests.redis_servers import TestRedis
from tests.scripts.records.conftest import Log, client, log, record

__all__ = ["client", "log"]


@pytest.fixture
def marctl(redis_server: TestRedis, client: redis.Redis, tmp_path: Path) -> object:
    def run(*arguments: str) -> Result:
        state = ["--state", str(tmp_path / "state")]
        return CliRunner().invoke(main, [*arguments, *state], env={"REDIS_URL": redis_server.url})

    return run


def test_tail_shows_the_last_ones_oldest_first(marctl, log: Log) -> None:  # type: ignore[no-untyped-def]
    log(*(record(f"id-{i}", version=f"{i % 2}.0") for i in range(1200)))
    log(record("order-7", cache="hit", fallback_from="3.0", shadow=True, prediction=None, confidence=None))
    shown = marctl("log", "tail", "-n", "2").output.splitlines()
    assert len(shown) == 2
    assert shown[0] == "2025-11-21 12:00:00.000  mcqa 1.0       1  0.750     5.0 ms  id-1199"
    assert shown[1].endswith("order-7  cache hit, for 3.0, shadow")
    only = marctl("log", "tail", "--version", "0.0", "-n", "600", "--json").output.splitlines()
    assert [json.loads(line)["prediction_id"] for line in only] == [f"id-{i}" for i in range(0, 1200, 2)]


def test_an_empty_log_shows_nothing(marctl) -> None:  # type: ignore[no-untyped-def]
    done = marctl("log", "tail")
    assert (done.exit_code, done.output) == (0, "")


def test_drain_tells_what_it_did_and_where(marctl, log: Log, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    log(record("a"))
    done = marctl("log", "drain")
    assert done.output == f"1 prediction and 0 labels in 1 file below {tmp_path / 'state' / 'log'}\n"
    assert json.loads(marctl("log", "drain", "--json").output)["predictions"] == 0


def test_without_pyarrow_it_says_what_to_install(  # type: ignore[no-untyped-def]
    marctl, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(record("a"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = marctl("log", "drain")
    assert done.exit_code == 1
    assert "pip install pyarrow" in done.output


def test_without_a_redis_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    done = CliRunner().invoke(main, ["log", "tail", "--state", str(tmp_path)])
    assert done.exit_code == 1
    assert "marctl up" in done.output


def test_a_redis_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    environ = {"REDIS_URL": f"unix://{tmp_path}/none.sock"}
    for command in (["tail"], ["drain"], ["label", "--id", "a", "--label", "1"]):
        done = CliRunner().invoke(main, ["log", *command, "--state", str(tmp_path)], env=environ)
        assert done.exit_code == 1
        assert "Redis does not answer" in done.output
        assert "Traceback" not in done.output
