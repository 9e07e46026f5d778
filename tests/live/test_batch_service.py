"""The batch service as a process, and its jobs on a real Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import schemathesis
import xgboost
import yaml
from hypothesis import HealthCheck, given, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode

from loadtest.batch.jobs import is_named, predictions
from marctl.records.reader import read
from marctl_handlers.features import Features, resolve_table
from tests.batch_archives import doubling_archive
from tests.live.conftest import MARCTL, PROJECT, Site
from tests.live.test_openapi import CONFORMS
from tests.tiny_tables import LABELS, save_xgboost, specification, stored_specification

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
        folders = [str(self.folder / "batch.yaml"), str(self.folder / "jobs"), str(self.folder), str(self.store)]
        arguments = [*folders, str(self.port)]
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
        ({"input": "/data/in\0"}, 422, "invalid_request"),
        ({"explain": "yes"}, 422, "invalid_request"),
        ({"explain": {"target": "x" * 10_000}}, 422, "invalid_request"),
        ({"as_of": "asked_at"}, 422, "invalid_request"),
        ({"features": {"customer": "IN"}}, 422, "invalid_request"),
        ({"features": {"customer": "/etc/passwd"}, "as_of": "asked_at"}, 403, "outside_roots"),
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


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"nonsense", 400), (b"[]", 422), (b'{"explain": {"a": ' + b"[" * 100_000, 400), (b"\xff", 400), (b"", 400)],
)
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


# --- behind a gateway


@dataclass
class Batch:
    """A stack's batch service, as clients reach it."""

    site: Site
    gateway: str

    @property
    def folder(self) -> Path:
        return self.site.folder

    def submit(self, **changes: Any) -> str:
        body = {"version": "1.0", "input": str(self.folder / "in"), **changes}
        answer = requests.post(f"{self.gateway}/v1/batch_predict", json=body, timeout=10)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finished(self, job: str) -> dict[str, Any]:
        """Once it is over; the service may be away meanwhile."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            told = requests.get(f"{self.gateway}/v1/batch/{job}", timeout=10)
            if told.status_code == 200 and told.json()["finished_at"] is not None:
                return dict(told.json())
            assert time.monotonic() < deadline, told.text
            time.sleep(0.2)


@pytest.fixture(scope="module")
def batch(make_site: Callable[..., Site]) -> Iterator[Batch]:
    """A stack that serves doubling 1.0, and has in its store loans 1.0, which reads stored features and explains."""
    site = make_site()
    doubling_archive(site.folder)
    build_loans(site)
    for name in ("in", "out", "loans"):
        (site.folder / name).mkdir()
    (site.folder / "in" / "rows.jsonl").write_text('{"value": 21}\n')
    roots = {"read": [str(site.folder / name) for name in ("in", "loans")], "write": [str(site.folder / "out")]}
    (site.folder / "batch.yaml").write_text(yaml.safe_dump(roots))
    told = site.call(*site.up_arguments, "--detach", "--batch-config", str(site.folder / "batch.yaml"))
    yield Batch(site, told["gateway"])
    assert site.run("down").returncode == 0
    assert not [p for p in psutil.process_iter() if is_named(p, str(site.state))]


def build_loans(site: Site) -> None:
    (site.folder / "features.yaml").write_bytes(msgspec.yaml.encode(stored_specification()))
    save_xgboost(site.folder / "model.json")
    command = [*MARCTL, "build", "--from", str(site.folder / "model.json"), "--explain"]
    command += ["--features", str(site.folder / "features.yaml"), f"--set=labels={json.dumps(LABELS)}"]
    command += ["--name", "loans", "--version", "1.0", "--recipes", str(site.folder / "others")]
    subprocess.run([*command, "--store", str(site.store)], cwd=PROJECT, check=True, capture_output=True)


def test_a_stack_starts_it_again_when_it_dies(batch: Batch) -> None:
    job = batch.submit(model="doubling", output=str(batch.folder / "out" / "doubled"))
    [service] = [
        p for p in psutil.process_iter() if is_named(p, "marctl.batch.service") and is_named(p, str(batch.site.state))
    ]
    service.kill()
    assert batch.finished(job)["status"] == "done"
    assert predictions(batch.folder / "out" / "doubled")["doubled"].to_pylist() == [42]


ASKED_AT = datetime(2024, 5, 1, tzinfo=UTC)


def history(folder: Path) -> Path:
    """Of ann, what was known a minute before the moment that is asked for, and what came a minute later; bob's age."""
    before, after = (ASKED_AT + timedelta(minutes=minutes) for minutes in (-1, 1))
    known = {"customer": ["ann", "ann", "bob"], "time": [before, after, before]}
    values = {"income": [900.0, 90_000.0, None], "age": [25, 60, 40], "home": ["rent", "own", None]}
    pq.write_table(pa.table(known | values), folder / "history.parquet")
    return folder / "history.parquet"


def test_a_job_explains_its_answers_records_them_and_reads_features_as_they_were_known(batch: Batch) -> None:
    folder = batch.folder / "loans"
    amounts = [15_000.0, 200.0, None]
    rows = {"id": [1, 2, 3], "customer": ["ann", "bob", "ann"], "asked_at": [ASKED_AT] * 2 + [None], "amount": amounts}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    job = batch.submit(
        model="loans",
        input=str(folder / "rows.parquet"),
        output=str(batch.folder / "out" / "loans"),
        key=["id"],
        features={"customer": str(history(folder))},
        as_of="asked_at",
        explain={"method": "tree_shap"},
        log=True,
    )
    told = batch.finished(job)
    assert told["status"] == "done", told
    assert told["result"] == {"read": 3, "selected": 3, "predicted": 2, "failed": 1}
    answers = predictions(batch.folder / "out" / "loans").to_pylist()
    assert [answer["id"] for answer in answers] == [1, 2]
    known = {"income": 900.0, "age": 25, "home": "rent"}
    assert answers[0]["prediction"] == pytest.approx(plainly(batch, {**known, "amount": amounts[0]}), abs=1e-4)
    assert (answers[0]["imputed"], answers[1]["imputed"]) == ([], ["income", "home"])
    [explanation] = json.loads(answers[0]["explanations"])
    assert explanation["method"] == "tree_shap"
    assert {one["feature"]: one["value"] for one in explanation["features"]} == {**known, "amount": amounts[0]}
    batch.site.call("log", "drain")
    records = [row for row in read(batch.site.state / "log").to_pylist() if row["role"] == "batch"]
    assert {row["prediction_id"]: row["prediction"] for row in records} == {
        answer["prediction_id"]: answer["prediction"] for answer in answers
    }


def plainly(batch: Batch, row: dict[str, Any]) -> float:
    """What XGBoost itself says of one row."""
    features = Features(specification())
    encoded = features.encode(resolve_table(features, pa.Table.from_pylist([row])))
    return float(xgboost.Booster(model_file=batch.folder / "model.json").predict(xgboost.DMatrix(encoded))[0])


def test_the_prometheus_page_counts_its_jobs_and_rows(batch: Batch) -> None:
    """After the jobs above."""
    page = requests.get(f"{batch.gateway}/metrics", timeout=10).text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith(("marctl_batch", "marctl_part_up"))
    }
    assert samples["marctl_part_up", "batch"] == 1
    assert samples["marctl_batch_jobs_ended_total", "done"] == 2
    assert samples["marctl_batch_rows_total", "predicted"] == 3
    assert samples["marctl_batch_rows_total", "failed"] == 1
    assert samples["marctl_batch_jobs", "running"] == samples["marctl_batch_rows_left",] == 0


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_its_answers_are_those_that_the_gateways_document_tells(batch: Batch, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{batch.gateway}/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations() if one.ok().path.startswith("/v1/batch")]
    assert {f"{one.method.upper()} {one.path}" for one in operations} == {
        "POST /v1/batch_predict",
        "GET /v1/batch",
        "GET /v1/batch/{id}",
        "DELETE /v1/batch/{id}",
    }
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def ask(case: Any) -> None:
            answer = case.call(base_url=batch.gateway, timeout=30)
            case.validate_response(answer, checks=CONFORMS)
            assert answer.status_code < 500, answer.text

        ask()
