"""Out of service and back: a real Envoy before a stand-in for TorchServe, which answers all the time."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from marctl.gateway.settings import GatewaySettings
from marctl.stack.ports import free_port
from tests.live.envoys import Standin, TestGateway, gateway_with_server, until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, TestGateway]]:
    folder = tmp_path_factory.mktemp("drain")
    settings = GatewaySettings(metrics_port=free_port(), api_keys={"ann": "secret"})
    with gateway_with_server(folder, settings) as opened:
        opened[1].look(opened[1].watcher(folder), pid=os.getpid())
        until(lambda: ready(opened[1]).status_code == 200)
        yield opened


@pytest.fixture
def gateway(both: tuple[Standin, TestGateway]) -> Iterator[TestGateway]:
    both[0].forget()
    yield both[1]
    both[0].release.set()
    both[1].envoy.undrain()


def ready(gateway: TestGateway, path: str = "/ready") -> requests.Response:
    return requests.get(gateway.probes + path, timeout=5)


def ask(gateway: TestGateway) -> requests.Response:
    return gateway.ask(x_api_key="secret")


def test_readiness_is_503_on_every_page_that_tells_it_and_comes_back(gateway: TestGateway) -> None:
    gateway.envoy.drain()
    assert gateway.envoy.draining
    for told in (ready(gateway), requests.get(f"{gateway.url}/ready", timeout=5)):
        assert (told.status_code, told.json()["error"], told.json()["status"]) == (503, "draining", "not ready")
        assert "marctl drain --undo" in told.json()["detail"]
    open_protocol = requests.get(f"{gateway.url}/v2/health/ready", headers={"x-api-key": "secret"}, timeout=5)
    assert open_protocol.status_code == 503
    assert ready(gateway, "/healthz").status_code == 200
    gateway.envoy.undrain()
    assert not gateway.envoy.draining
    assert (ready(gateway).status_code, ready(gateway).json()["status"]) == (200, "ready")


def test_every_connection_ends_with_its_next_answer_and_new_ones_are_answered(gateway: TestGateway) -> None:
    address = urlsplit(gateway.url)
    kept = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    head = {"x-api-key": "secret", "content-type": "application/json"}
    for drained in (False, True):
        if drained:
            gateway.envoy.drain()
        kept.request("POST", "/predict", b'{"question": "?"}', head)
        answer = kept.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"prediction": 1}')
        assert (answer.getheader("connection") == "close") == drained
    assert [ask(gateway).status_code for _ in range(5)] == [200] * 5


def test_what_is_in_force_stays_so_while_it_drains(gateway: TestGateway) -> None:
    """Or the reconciler would write the same routes again and again."""
    gateway.envoy.drain()
    assert gateway.envoy.in_force(gateway.served, gateway.policies)
    gateway.set(split={"2.0": 100})
    assert ask(gateway).headers["x-model-version"] == "2.0"


def test_the_port_for_figures_has_them_without_a_key_and_nothing_else(
    both: tuple[Standin, TestGateway], tmp_path: Path
) -> None:
    server, gateway = both
    server.forget()
    figures = f"http://127.0.0.1:{gateway.envoy.settings.metrics_port}"
    requests.get(f"{figures}/metrics", timeout=5)
    assert server.others == ["GET /metrics"]
    for path in ("/predict", "/models", "/metrics/x", "/"):
        assert requests.get(figures + path, timeout=5).json()["error"] == "no_such_path"
    assert server.others == ["GET /metrics"]
    assert requests.get(f"{gateway.url}/metrics", timeout=5).status_code == 401
