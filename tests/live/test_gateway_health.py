"""Versions without a worker that can answer: a real Envoy before stand-ins for TorchServe and for workers."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from marctl.gateway.health import WITHOUT_WORKERS, Health
from marctl.gateway.settings import GatewaySettings
from tests.live.envoys import Standin, TestGateway, fails, gateway_with_server, hangs, until, waits

pytestmark = pytest.mark.live
FALLBACK = {"split": {"2.0": 100}, "fallback": ["1.0"]}
AT_ONCE_S = 0.25


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, TestGateway]]:
    # A stream that stalls is ended after this time; routes to workers have their own.
    settings = GatewaySettings(request_timeout_s=0.9)
    with gateway_with_server(tmp_path_factory.mktemp("health"), settings) as both:
        yield both


@pytest.fixture
def server(shared: tuple[Standin, TestGateway]) -> Iterator[Standin]:
    shared[0].forget()
    yield shared[0]
    shared[0].release.set()


@pytest.fixture
def gateway(shared: tuple[Standin, TestGateway], server: Standin) -> TestGateway:
    return shared[1]


@pytest.fixture
def health(gateway: TestGateway, tmp_path: Path) -> Iterator[Health]:
    watcher = gateway.watcher(tmp_path)
    gateway.look(watcher)
    until(lambda: requests.get(f"{gateway.probes}/ready", timeout=5).status_code == 200)
    yield watcher
    tell(gateway, watcher)


def tell(gateway: TestGateway, health: Health, *sick: str) -> None:
    """One look, after which Envoy knows; a request sent before that would wait for a worker that hangs."""
    gateway.look(health, *sick)
    told = json.loads((health.files / WITHOUT_WORKERS).read_text())["version_info"]
    until(lambda: told in gateway.admin_page("/stats?filter=workers.version_text"))


def answered_by(gateway: TestGateway, **headers: str) -> str | None:
    return gateway.ask(**headers).headers.get("x-model-version")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_requests_of_a_dead_or_hung_worker_go_to_the_fallback_and_come_back(
    server: Standin, gateway: TestGateway, health: Health, blow: signal.Signals
) -> None:
    """Within 1 s of a death and 3 s of a hang, with a look each quarter of a second, on a machine that has time."""
    gateway.set(**FALLBACK)
    with subprocess.Popen(["sleep", "100"]) as worker:
        gateway.look(health, pid=worker.pid)
        assert answered_by(gateway) == "2.0"
        server.behave["2.0"] = hangs
        worker.send_signal(blow)
        looks = 0
        while "mcqa|2.0" not in (health.files / WITHOUT_WORKERS).read_text():
            time.sleep(0.25)
            gateway.look(health, pid=worker.pid)
            looks += 1
            assert looks < (4 if blow is signal.SIGKILL else 12)
        worker.kill()
    tell(gateway, health, "2.0")
    until(lambda: gateway.ask().elapsed.total_seconds() < AT_ONCE_S)
    answers = [gateway.ask() for _ in range(10)]
    assert {answer.headers["x-fallback"] for answer in answers} == {"1.0"}
    assert statistics.median(answer.elapsed.total_seconds() for answer in answers) < AT_ONCE_S
    server.release.set()
    server.behave.clear()
    gateway.look(health)
    until(lambda: answered_by(gateway) == "2.0")


def test_without_a_fallback_a_version_without_workers_is_a_503_at_once_with_the_cure(
    server: Standin, gateway: TestGateway, health: Health
) -> None:
    gateway.set(split={"2.0": 100})
    server.behave["2.0"] = hangs
    tell(gateway, health, "2.0")
    until(lambda: gateway.ask().status_code == 503)
    until(lambda: gateway.ask().elapsed.total_seconds() < AT_ONCE_S)
    server.seen.clear()
    for got in (gateway.ask(), gateway.ask("/predictions/mcqa/2.0"), gateway.ask("/explain", x_model_version="2.0")):
        assert (got.status_code, got.json()["error"], got.headers["retry-after"]) == (503, "no_worker", "1")
        assert got.json()["detail"].startswith("mcqa 2.0 has no worker that can answer")
        assert "marctl scale mcqa 2.0 WORKERS" in got.json()["detail"]
    got = gateway.ask("/v2/models/mcqa/versions/2.0/infer")
    assert (got.status_code, got.json()["error"].split(":")[0]) == (503, "no_worker")
    assert not server.seen


def test_a_pinned_version_without_workers_is_not_answered_by_another(
    server: Standin, gateway: TestGateway, health: Health
) -> None:
    gateway.set(**FALLBACK)
    tell(gateway, health, "2.0")
    until(lambda: answered_by(gateway) == "1.0")
    assert gateway.ask(x_model_version="2.0").status_code == 503
    assert gateway.ask("/predictions/mcqa/2.0").status_code == 503


def test_a_fallback_without_workers_is_passed_over(server: Standin, gateway: TestGateway, health: Health) -> None:
    gateway.set(split={"3.0": 100}, fallback=["2.0", "1.0"])
    server.behave["2.0"] = hangs
    tell(gateway, health, "3.0", "2.0")
    until(lambda: gateway.ask().headers.get("x-fallback") == "1.0")
    until(lambda: gateway.ask().elapsed.total_seconds() < AT_ONCE_S)


def test_where_nobody_is_left_it_is_a_503(server: Standin, gateway: TestGateway, health: Health) -> None:
    gateway.set(**FALLBACK)
    tell(gateway, health, "2.0", "1.0")
    until(lambda: gateway.ask().status_code == 503)
    server.seen.clear()
    got = gateway.ask()
    assert (got.json()["error"], got.headers["retry-after"]) == ("unavailable", "1")
    until(lambda: gateway.ask().elapsed.total_seconds() < AT_ONCE_S)
    assert not server.seen


def test_a_shadow_without_workers_gets_no_copies(server: Standin, gateway: TestGateway, health: Health) -> None:
    gateway.set(split={"1.0": 100}, shadow={"2.0": 100})
    tell(gateway, health, "2.0")
    assert {gateway.ask().status_code for _ in range(5)} == {200}
    time.sleep(0.2)
    assert server.versions_seen() == ["1.0"] * 5


def test_silence_alone_sends_requests_to_the_fallback_and_is_tried_again(server: Standin, gateway: TestGateway) -> None:
    """With nobody who looks: five requests in a row without an answer are enough."""
    gateway.set(**FALLBACK, timeout_s=1)
    server.behave["2.0"] = hangs
    with ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(gateway.ask) for _ in range(8)]
        assert {answer.result().headers["x-fallback"] for answer in waiting} == {"1.0"}
    until(lambda: gateway.ask().elapsed.total_seconds() < AT_ONCE_S)
    assert gateway.ask().headers["x-fallback"] == "1.0"
    server.release.set()
    server.behave.clear()
    until(lambda: answered_by(gateway) == "2.0", timeout_s=20)


def test_errors_are_signs_of_life(server: Standin, gateway: TestGateway) -> None:
    """A full queue is no reason to leave a version alone: it works as fast as it can."""
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    assert {gateway.ask().headers["x-fallback"] for _ in range(30)} == {"1.0"}
    assert server.versions_seen().count("2.0") == 30


def test_a_full_queue_is_told_apart_from_no_worker(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"2.0": 100})
    words = 'Model \\"mcqa\\" has no worker to serve inference request. Please use scale workers API to add workers.'
    server.behave["2.0"] = fails(503, words)
    got = gateway.ask().json()
    assert got["error"] == "unavailable"
    assert got["detail"].startswith("the queue of this version is full")
    assert got["detail"].endswith("or add a worker: marctl scale mcqa VERSION WORKERS")


@pytest.mark.parametrize("path", ["/predict", "/predictions/mcqa", "/v2/models/mcqa/infer"])
def test_a_model_may_think_for_longer_than_a_client_may_stall(server: Standin, gateway: TestGateway, path: str) -> None:
    gateway.set(split={"2.0": 100})
    server.behave["2.0"] = lambda standin: (time.sleep(1.2), waits(standin))[1]
    assert gateway.ask(path).status_code == 200


def test_readiness_is_told_by_the_workers_and_costs_torchserve_nothing(
    server: Standin, gateway: TestGateway, health: Health
) -> None:
    gateway.set(**FALLBACK)
    pages = ["/ready", "/v2/health/ready", "/v2/models/mcqa/ready", "/v2/models/mcqa/versions/2.0/ready"]
    gateway.look(health)

    def codes() -> set[int]:
        return {requests.get(gateway.url + path, timeout=5).status_code for path in [*pages, "/v1/models/mcqa"]}

    until(lambda: codes() == {200})
    assert requests.get(f"{gateway.url}/v2/models/mcqa/ready", timeout=5).json() == {"name": "mcqa", "ready": True}
    gateway.look(health, "2.0")
    until(lambda: codes() == {503})
    got = requests.get(f"{gateway.url}/ready", timeout=5)
    assert got.json()["error"] == "not_ready"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["retry-after"] == "1"
    assert requests.get(f"{gateway.url}/v2/models/mcqa/versions/1.0/ready", timeout=5).status_code == 200
    assert not server.seen
    assert not server.others


def test_probes_have_a_port_of_their_own(gateway: TestGateway, health: Health) -> None:
    assert requests.get(f"{gateway.probes}/healthz", timeout=5).json() == {"status": "alive"}
    assert requests.get(f"{gateway.probes}/ready", timeout=5).json()["status"] == "ready"
    got = requests.get(f"{gateway.probes}/predict", timeout=5)
    assert (got.status_code, got.json()["error"]) == (404, "no_such_path")
