"""The batch service as a process, and its jobs on a real Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import yaml

from loadtest.batch.jobs import is_named, predictions
from tests.batch_archives import doubling_archive
from tests.live.conftest import PROJECT, Site

pytestmark = pytest.mark.live
TIMEOUT_S = 240


@dataclass
class Service:
    """One state folder, and the service on it, started and ended as the test likes."""

    folder: Path
    store: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/batch"

    def start(self) -> None:
        arguments = [str(self.folder / "batch.yaml"), str(self.folder / "jobs"), str(self.store), str(self.port)]
        self.process = subprocess.Popen([sys.executable, "-m", "marctl.batch.service", *arguments], cwd=PROJECT)
        deadline = time.monotonic() + 60
        while True:
            try:
                requests.get(self.url, timeout=1)
                return
            except requests.RequestException:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def end(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=60)

    def submit(self, client: str = "", **changes: Any) -> requests.Response:
        body = {
            "model": "doubling",
            "version": "1.0",
            "input": str(self.folder / "in" / "rows.parquet"),
            "output": str(self.folder / "out" / "first"),
            "key": ["id"],
            **changes,
        }
        return requests.post(
            f"{self.url}_predict", json=body, headers={"x-client": client} if client else {}, timeout=10
        )

    def get(self, job: str, client: str = "") -> requests.Response:
        return requests.get(f"{self.url}/{job}", headers={"x-client": client} if client else {}, timeout=10)

    def until(self, job: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds(told := self.get(job).json()):
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
        return told


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    store = doubling_archive(folder, pause_s=0.001).parent
    for name in ("in", "out"):
        (folder / name).mkdir()
    pq.write_table(pa.table({"id": range(6000), "value": range(20, 6020)}), folder / "in" / "rows.parquet")
    (folder / "in" / "linked.parquet").symlink_to(folder / "batch.yaml")
    (folder / "batch.yaml").write_text(yaml.safe_dump({"read": [str(folder / "in")], "write": [str(folder / "out")]}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Service(folder, store, port)
    made.start()
    yield made
    made.end()
    left = [process for process in psutil.process_iter() if is_named(process, str(folder))]
    assert left == []


@pytest.mark.parametrize(
    ("changes", "code", "error"),
    [
        ({"input": "/etc/passwd"}, 403, "outside_roots"),
        ({"input": "file:///etc/passwd"}, 403, "outside_roots"),
        ({"input": "s3://bucket/x.csv?endpoint_override=http://127.0.0.1:8081"}, 403, "outside_roots"),
        ({"output": "/tmp/elsewhere"}, 403, "outside_roots"),
        ({"output": "IN"}, 403, "outside_roots"),
        ({"input": "LINKED"}, 403, "outside_roots"),
        ({"model": "../../etc/passwd"}, 422, "invalid_request"),
        ({"version": "9.9"}, 422, "invalid_request"),
        ({"where": "__import__('os').system('id')"}, 422, "bad_condition"),
        ({"limit": "5"}, 422, "invalid_request"),
        ({"limit": 0}, 422, "invalid_request"),
        ({"key": ["--restart\0"]}, 422, "invalid_request"),
        ({"surprise": 1}, 422, "invalid_request"),
        ({"input": []}, 422, "invalid_request"),
    ],
)
def test_a_job_that_must_not_run_is_refused_at_once(
    service: Service, changes: dict[str, Any], code: int, error: str
) -> None:
    places = {"IN": str(service.folder / "in"), "LINKED": str(service.folder / "in" / "linked.parquet")}
    given = {name: places.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    answer = service.submit(**given)
    assert (answer.status_code, answer.json()["error"]) == (code, error)
    assert set(answer.json()) == {"error", "detail"}


@pytest.mark.parametrize(("body", "code"), [(b"nonsense", 400), (b"[]", 422), (b'{"a": ' * 1000, 400), (b"\xff", 400)])
def test_a_body_that_is_no_job_gets_an_error_of_the_usual_form(service: Service, body: bytes, code: int) -> None:
    answer = requests.post(
        f"{service.url}_predict", data=body, headers={"content-type": "application/json"}, timeout=10
    )
    assert answer.status_code == code
    assert set(answer.json()) == {"error", "detail"}


@pytest.mark.parametrize("job", ["batch-0", "..%2f..%2fetc%2fpasswd", "x" * 500])
def test_a_job_that_is_not_there_is_told(service: Service, job: str) -> None:
    assert service.get(job).status_code == 404


def test_a_job_outlives_the_service_and_is_done_once(service: Service) -> None:
    answer = service.submit()
    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.json()["status"] == "queued"
    assert service.submit().json()["error"] == "output_taken"
    assert service.get(job, client="somebody").status_code == 404, "a job is its client's alone"
    waiting = service.submit(output=str(service.folder / "out" / "second")).json()["id"]
    told = service.until(job, lambda told: bool(told["rows"] and told["rows"]["done"]))
    assert told["status"] == "running"
    assert told["rows"]["total"] == 6000
    assert told["rate"] > 0
    service.end(signal.SIGKILL)
    service.start()
    told = service.until(job, lambda told: told["status"] == "done")
    assert told["result"] == {"read": 6000, "selected": 6000, "predicted": 6000, "failed": 0}
    assert predictions(service.folder / "out" / "first")["id"].to_pylist() == list(range(6000))
    ended_in_order(service, waiting)
    cancelled(service, waiting)


def ended_in_order(service: Service, job: str) -> None:
    """A service that is told to end ends its jobs, and goes on with them when it is started again."""
    service.until(job, lambda told: told["status"] == "running")
    service.end(signal.SIGTERM)
    assert not [p for p in psutil.process_iter() if is_named(p, f"--progress={service.folder}")]
    service.start()
    assert service.get(job).json()["status"] in ("queued", "running")


def cancelled(service: Service, job: str) -> None:
    service.until(job, lambda told: told["status"] == "running")
    requests.delete(f"{service.url}/{job}", timeout=10)
    told = service.until(job, lambda told: told["status"] == "cancelled")
    assert told["finished_at"] is not None
    listed = requests.get(service.url, timeout=10).json()["jobs"]
    assert [one["id"] for one in listed][:1] == [job]
    assert {one["status"] for one in listed} == {"done", "cancelled"}


def test_a_job_that_fails_says_why(service: Service) -> None:
    job = service.submit(map={"nothing": "id"}, output=str(service.folder / "out" / "third")).json()["id"]
    told = service.until(job, lambda told: told["status"] == "failed")
    assert "a question has no such field" in told["error"]["detail"]


def test_its_files_are_for_its_own_user_alone(service: Service) -> None:
    folder = service.folder / "jobs"
    assert folder.stat().st_mode & 0o077 == 0
    assert os.listdir(folder)


def test_a_stack_starts_it_behind_its_gateway_and_again_when_it_dies(make_site: Callable[..., Site]) -> None:
    site = make_site()
    doubling_archive(site.folder)
    for name in ("in", "out"):
        (site.folder / name).mkdir()
    (site.folder / "in" / "rows.jsonl").write_text('{"value": 21}\n')
    roots = {"read": [str(site.folder / "in")], "write": [str(site.folder / "out")]}
    (site.folder / "batch.yaml").write_text(yaml.safe_dump(roots))
    told = site.call(*site.up_arguments, "--detach", "--batch-config", str(site.folder / "batch.yaml"))
    url = f"{told['gateway']}/v1/batch"
    body = {"model": "doubling", "version": "1.0", "input": roots["read"], "output": f"{roots['write'][0]}/first"}
    answer = requests.post(f"{url}_predict", json=body, timeout=10)
    assert answer.status_code == 202, answer.text
    job = answer.json()["id"]
    [service] = [
        p for p in psutil.process_iter() if is_named(p, "marctl.batch.service") and is_named(p, str(site.state))
    ]
    service.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while (told := requests.get(f"{url}/{job}", timeout=10)).status_code != 200 or told.json()["status"] != "done":
        assert time.monotonic() < deadline, told.text
        time.sleep(0.2)
    assert predictions(site.folder / "out" / "first")["doubled"].to_pylist() == [42]
    assert site.run("down").returncode == 0
    assert not [p for p in psutil.process_iter() if is_named(p, str(site.state))]
