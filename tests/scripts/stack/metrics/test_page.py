"""The page over the files of real processes; TorchServe's own part is tested live."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import prometheus_client.openmetrics.parser as openmetrics
import pytest
import requests

from marctl.core.errors import UserError
from marctl.stack.metrics.page import MetricsPage
from marctl.stack.metrics.workers import FOLDER, WorkerFigures, make_folder
from marctl.stack.ports import Ports, free_port
from marctl.stack.state import Running, State
from marctl_handlers.torchserve.exemplars import Exemplar
from marctl_handlers.torchserve.metrics import FILE_BYTES, FOLDER_VARIABLE

WORKER = """
import sys
from marctl_handlers.torchserve.metrics import reserve
reserve()
from prometheus_client import Counter, Gauge, Histogram
requests = Counter("batcher_requests_total", "", ["model"], registry=None).labels("quiz")
sizes = Histogram("batcher_batch_size", "", ["model"], buckets=(1, 8), registry=None).labels("quiz")
inflight = Gauge("batcher_inflight_batches", "", ["model"], registry=None, multiprocess_mode="livesum").labels("quiz")
asking = Gauge("handler_cache_asking", "", ["model"], registry=None, multiprocess_mode="livemin").labels("quiz")
stages = Histogram("handler_stage_seconds", "", ["model", "version", "role", "stage"], buckets=(0.1,), registry=None)
stages.labels("quiz", "1.0", "split", "total").observe(0.05)
requests.inc(int(sys.argv[1])); sizes.observe(int(sys.argv[1])); inflight.inc(); asking.set(0)
print("ready", flush=True)
sys.stdin.read()
"""


class Workers:
    """Processes that have counted something and wait for their end."""

    def __init__(self, temp: Path) -> None:
        self.folder = make_folder(temp)
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, count: int) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        environ = {**os.environ, FOLDER_VARIABLE: str(self.folder)}
        command = [sys.executable, "-c", WORKER, str(count)]
        process = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    yield started
    started.end()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A page over the folder, served."""
    nobody = f"http://127.0.0.1:{free_port()}"
    address = f"http://127.0.0.1:{free_port()}"
    page = MetricsPage(
        State(tmp_path), lambda: Running(Ports(*range(1, 10)), nobody, nobody, address, "", str(tmp_path), "")
    )
    page.start()
    yield f"{address}/metrics"
    page.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)


def figures(url: str) -> dict[str, float]:
    """Of the workers; those of the machine change by themselves."""
    answer = requests.get(url, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    own = ("#", "marctl_", "handler_stage_")
    lines = [line for line in answer.text.splitlines() if not line.startswith(own)]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


REQUESTS, INFLIGHT = 'batcher_requests_total{model="quiz"}', 'batcher_inflight_batches{model="quiz"}'
ASKING = 'handler_cache_asking{model="quiz"}'


def test_workers_figures_add_up(workers: Workers, url: str) -> None:
    workers.start(3)
    workers.start(4)
    found = figures(url)
    assert (found[REQUESTS], found[INFLIGHT], found[ASKING]) == (7, 2, 0)
    assert found['batcher_batch_size_bucket{le="8.0",model="quiz"}'] == 2


def test_counts_of_a_killed_worker_stay_and_its_states_go(workers: Workers, url: str) -> None:
    victim = workers.start(3)
    workers.start(4)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    found = figures(url)
    assert (found[REQUESTS], found[INFLIGHT]) == (7, 1)
    assert not list(workers.folder.glob(f"gauge_*_{victim.pid}.db"))


def test_a_later_process_of_the_same_number_takes_no_states_over(workers: Workers, url: str) -> None:
    dead = workers.start(3)
    dead.kill()
    dead.wait()
    later = workers.start(4)
    [old] = workers.folder.glob(f"gauge_livesum_{dead.pid}.db")
    [new] = workers.folder.glob(f"gauge_livesum_{later.pid}.db")
    old.replace(new)
    os.utime(new, (1, 1))
    assert INFLIGHT not in figures(url)


def test_files_of_many_ended_workers_become_one_of_each_kind(workers: Workers, url: str) -> None:
    for _ in range(5):
        process = workers.start(2)
        process.kill()
        process.wait()
    workers.start(1)
    before = figures(url)
    for _ in range(2):
        WorkerFigures(workers.folder).tidy()
        assert figures(url) == before
    names = {path.name.rpartition("_")[0] for path in workers.folder.glob("*.db")}
    assert names == {"counter", "histogram", "gauge_livesum", "gauge_livemin"}
    assert len(list(workers.folder.iterdir())) == 6
    assert before[REQUESTS] == 11


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x40\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00nonsense"])
def test_a_damaged_file_blanks_no_page(content: bytes, workers: Workers, url: str) -> None:
    workers.start(3)
    (workers.folder / "counter_1.db").write_bytes(content)
    assert figures(url)[REQUESTS] == 3


def test_a_worker_that_has_counted_nothing_yet_changes_nothing(workers: Workers, url: str) -> None:
    workers.start(3)
    for kind in ("counter", "histogram", "gauge_livesum"):
        (workers.folder / f"{kind}_{os.getpid()}.db").write_bytes(bytes(FILE_BYTES))
    assert figures(url)[REQUESTS] == 3


def exemplar(le: str, seconds: float, time_s: float, request_id: str) -> Exemplar:
    return Exemplar("quiz", "1.0", "split", le, seconds, time_s, {"request_id": request_id})


def test_of_two_workers_exemplars_the_later_one_stands_beside_its_bucket(workers: Workers, url: str) -> None:
    first, second, third = workers.start(1), workers.start(1), workers.start(1)
    third.kill()
    third.wait()
    told = {first: [exemplar("0.1", 0.09, 5.0, "old"), exemplar("+Inf", 11.0, 5.0, "slow")]}
    told |= {second: [exemplar("0.1", 0.08, 6.0, "new")], third: [exemplar("0.1", 0.07, 7.0, "gone")]}
    for process, each in told.items():
        (workers.folder / f"exemplars_quiz_1.0_{process.pid}.json").write_bytes(msgspec.json.encode(each))
    (workers.folder / f"exemplars_other_1.0_{first.pid}.json").write_bytes(b"[{")
    answer = requests.get(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}, timeout=10)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = {
        sample.labels["le"]: sample.exemplar
        for family in openmetrics.text_string_to_metric_families(answer.text)
        for sample in family.samples
        if family.name == "handler_stage_seconds" and sample.exemplar
    }
    assert {le: (each.labels, each.value) for le, each in found.items()} == {
        "0.1": ({"request_id": "new"}, 0.08),
        "+Inf": ({"request_id": "slow"}, 11.0),
    }
    assert not list(workers.folder.glob(f"*_{third.pid}.json"))


def test_in_plain_text_there_are_no_exemplars(workers: Workers, url: str) -> None:
    process = workers.start(1)
    told = msgspec.json.encode([exemplar("0.1", 0.09, 5.0, "id")])
    (workers.folder / f"exemplars_quiz_1.0_{process.pid}.json").write_bytes(told)
    text = requests.get(url, timeout=10).text
    assert "handler_stage_seconds_bucket{" in text
    assert "# {" not in text


def test_what_was_counted_before_a_server_died_still_counts(workers: Workers, url: str, tmp_path: Path) -> None:
    workers.start(3)
    workers.end()
    assert make_folder(tmp_path) == tmp_path / FOLDER
    assert figures(url)[REQUESTS] == 3


def test_a_torchserve_that_does_not_answer_is_named(url: str) -> None:
    text = requests.get(url, timeout=10).text
    assert text.startswith("# no figures from TorchServe: ConnectionError\n")
    assert "# TYPE batcher_queue_size gauge" in text


def test_other_paths_are_not_found(url: str) -> None:
    assert requests.get(url.removesuffix("/metrics"), timeout=5).status_code == 404


def test_a_silent_client_holds_nobody_up(url: str) -> None:
    host, _, port = url.removeprefix("http://").removesuffix("/metrics").partition(":")
    with socket.create_connection((host, int(port))):
        assert figures(url) == {}


def test_a_taken_port_is_an_error_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        page = MetricsPage(
            State(tmp_path), lambda: Running(Ports(*range(1, 10)), "", "", address, "", str(tmp_path), "")
        )
        with pytest.raises(UserError, match=f"cannot serve metrics at {address}: Address already in use"):
            page.start()
        page.stop()
