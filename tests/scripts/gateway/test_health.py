"""What is concluded from real processes and heartbeat files; what Envoy makes of it is proved in tests/live."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marctl.core.errors import UserError
from marctl.gateway.health import READINESS, WITHOUT_WORKERS, Health, Verdict, Workers, begin

HOSTS = ["http://127.0.0.1:1", "http://10.0.0.2:8080"]
ROUTED = [("mcqa", "1.0")]


class Watched:
    """A Health whose time passes as the test says."""

    def __init__(self, folder: Path) -> None:
        self.files, self.beats, self.now = folder / "gateway", folder / "heartbeat", 100.0
        self.beats.mkdir()
        self.files.mkdir()
        begin(self.files)
        self.health = Health(self.files, HOSTS, self.beats, clock=lambda: self.now)

    def step(self, *pids: int, ready: bool = True, after_s: float = 0.25) -> Verdict:
        self.now += after_s
        [verdict] = self.health.step([Workers("mcqa", "1.0", pids, (ready,) * len(pids))], ROUTED)
        return verdict

    def beat(self, pid: int, number: int) -> None:
        (self.beats / str(pid)).touch()
        os.utime(self.beats / str(pid), ns=(number, number))

    @property
    def file(self) -> Path:
        return self.files / WITHOUT_WORKERS

    @property
    def passed_over(self) -> bool:
        """Whether requests for the version are kept from it."""
        [resource] = json.loads(self.file.read_text())["resources"]
        code = resource["typed_config"]["default_source_code"]["inline_string"]
        assert ("WITHOUT" in code) == ("envoy_on_request" in code)
        return '["mcqa|1.0"] = true' in code

    def page(self, path: str) -> tuple[int, Any]:
        [resource] = json.loads((self.files / READINESS).read_text())["resources"]
        routes = {r["match"].get("path"): r["direct_response"] for r in resource["virtual_hosts"][0]["routes"]}
        return routes[path]["status"], json.loads(routes[path]["body"]["inline_string"])


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def test_a_version_with_a_live_worker_gets_requests_and_is_ready(
    watched: Watched, worker: subprocess.Popen[bytes]
) -> None:
    assert watched.page("/ready")[0] == 503
    assert watched.step(worker.pid) == Verdict("mcqa", "1.0", 1)
    assert not watched.passed_over
    code, page = watched.page("/ready")
    assert (code, page["status"]) == (200, "ready")
    assert page["versions"] == [{"model": "mcqa", "version": "1.0", "routed": True, "workers_ready": 1}]


def test_a_stack_that_serves_nothing_is_not_ready(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    """Or a node whose first document failed would be sent requests."""
    watched.health.step([], [])
    assert watched.page("/ready")[0] == 503
    assert "nothing is served" in watched.page("/ready")[1]["detail"]
    watched.step(worker.pid)
    assert watched.page("/ready")[0] == 200
    watched.health.step([Workers("mcqa", "1.0", (worker.pid,), (True,))], [])
    assert watched.page("/ready")[0] == 503


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_killed_worker_is_noticed_at_the_next_look(
    watched: Watched, worker: subprocess.Popen[bytes], reaped: bool
) -> None:
    watched.step(worker.pid)
    worker.kill()
    if reaped:
        worker.wait()
    else:
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert watched.step(worker.pid) == Verdict("mcqa", "1.0", 0, (f"worker {worker.pid} is gone",))
    assert watched.passed_over
    code, page = watched.page("/ready")
    assert (code, page["error"]) == (503, "not_ready")
    assert f"mcqa 1.0 has traffic and no worker that can answer: worker {worker.pid} is gone" in page["detail"]


def test_one_live_worker_of_two_is_enough(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    verdict = watched.step(worker.pid, -1)
    assert (verdict.answering, verdict.troubles) == (1, ("a worker is starting",))
    assert not watched.passed_over


def test_a_worker_that_loads_or_starts_does_not_answer(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    assert watched.step(worker.pid, ready=False).troubles == (f"worker {worker.pid} is loading",)
    assert watched.step(-1, ready=False).answering == 0
    assert watched.step().answering == 0
    assert "it has no worker" in watched.page("/ready")[1]["detail"]


def test_a_stopped_worker_hangs_after_a_second_and_comes_back(
    watched: Watched, worker: subprocess.Popen[bytes]
) -> None:
    watched.step(worker.pid)
    worker.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
    assert [watched.step(worker.pid).answering for _ in range(4)] == [1, 1, 1, 0]
    worker.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, worker.pid, os.WCONTINUED)
    assert watched.step(worker.pid).answering == 1


def test_a_worker_whose_heartbeat_stops_hangs_and_comes_back(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    """However its clock is set."""
    for number in (7, 3, 5):
        watched.beat(worker.pid, number)
        for _ in range(8):
            assert watched.step(worker.pid).answering == 1
    assert [watched.step(worker.pid).answering for _ in range(3)] == [1, 1, 0]
    assert "no sign of life for 2.5 s" in watched.step(worker.pid).troubles[0]
    watched.beat(worker.pid, 6)
    assert watched.step(worker.pid).answering == 1


def test_a_worker_without_a_heartbeat_is_not_held_to_have_one(
    watched: Watched, worker: subprocess.Popen[bytes]
) -> None:
    assert {watched.step(worker.pid).answering for _ in range(40)} == {1}


def test_who_was_stopped_itself_holds_nothing_against_a_worker(
    watched: Watched, worker: subprocess.Popen[bytes]
) -> None:
    watched.beat(worker.pid, 1)
    watched.step(worker.pid)
    assert watched.step(worker.pid, after_s=3600).answering == 1


def test_nothing_is_written_that_stands_there(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    watched.step(worker.pid)
    before = [path.stat().st_ino for path in (watched.file, watched.files / READINESS)]
    for _ in range(3):
        watched.step(worker.pid)
    assert [path.stat().st_ino for path in (watched.file, watched.files / READINESS)] == before


def test_what_somebody_else_wrote_or_removed_is_put_right(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    watched.step(worker.pid)
    watched.file.write_text("{}")
    watched.step(worker.pid)
    assert not watched.passed_over
    watched.file.unlink()
    watched.step(worker.pid)
    assert not watched.passed_over


def test_a_worker_of_many_versions_is_looked_at_once(watched: Watched, worker: subprocess.Popen[bytes]) -> None:
    """Its silence would count once for each of them."""
    watched.beat(worker.pid, 1)
    both = [Workers("mcqa", version, (worker.pid,), (True,)) for version in ("1.0", "2.0")]
    for _ in range(8):
        watched.now += 0.25
        verdicts = watched.health.step(both, ROUTED)
    assert [verdict.answering for verdict in verdicts] == [1, 1]


def test_of_many_versions_the_page_tells_some_and_how_many_there_are(watched: Watched) -> None:
    watched.health.step([Workers("mcqa", str(n), (), ()) for n in range(500)], [("mcqa", str(n)) for n in range(500)])
    code, page = watched.page("/ready")
    assert (code, len(page["versions"]), page["versions_in_all"]) == (503, 100, 500)
    assert page["detail"].endswith("480 more are without, too")


def test_a_start_knows_nothing_of_readiness_and_the_next_step_tells_it(
    watched: Watched, worker: subprocess.Popen[bytes]
) -> None:
    watched.step(worker.pid)
    begin(watched.files)
    assert watched.page("/ready")[0] == 503
    watched.step(worker.pid)
    assert watched.page("/ready")[0] == 200


def test_a_file_that_cannot_be_written_is_written_when_it_can(
    watched: Watched, worker: subprocess.Popen[bytes]
) -> None:
    watched.step(worker.pid)
    worker.kill()
    worker.wait()
    watched.file.unlink()
    watched.file.mkdir()
    with pytest.raises((OSError, UserError)):
        watched.step(worker.pid)
    watched.file.rmdir()
    watched.step(worker.pid)
    assert watched.passed_over


def test_a_routed_version_that_nobody_knows_is_not_ready(watched: Watched) -> None:
    watched.health.step([], ROUTED)
    code, page = watched.page("/ready")
    assert code == 503
    assert "mcqa 1.0 has traffic" in page["detail"]
