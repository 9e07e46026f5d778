"""In place of a cluster: two pods, a Service before them, and a rolling update under load that loses nothing."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from tritonclient import grpc

from marctl.build.reader import read_archive
from marctl.stack.store import digest_of
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.live.pods import Pod, Service, loopback_addresses
from tests.tiny_archives import REQUEST

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
BODY = json.dumps(REQUEST)
KEY, NEXT_KEY = "the-first-key", "the-next-key"
HEAD = {"content-type": "application/json", "x-api-key": KEY}
PAUSE_S = 0.02
TIMEOUT_S = 30


class Clients:
    """Ask without a pause longer than PAUSE_S, and never again: what fails once is lost."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self._ending = threading.Event()
        self.lost: list[str] = []
        self.versions: list[str] = []
        """Of each answer, in their order."""
        self.calls = 0
        """Over gRPC."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        kinds = [self._keep_connection] * 4 + [self._connect_anew] * 4 + [self._call]
        threads = [threading.Thread(target=kind) for kind in kinds]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in threads:
                thread.join()

    def answered_by(self, version: str, number: int = 50) -> bool:
        """Whether all of the last answers were this version's."""
        return set(self.versions[-number:]) == {version} and len(self.versions) >= number

    def _keep_connection(self) -> None:
        """As most clients do, until the server says that the connection ends."""
        connection = self._connection()
        while not self._ending.wait(PAUSE_S):
            self._ask(connection)
        connection.close()

    def _connect_anew(self) -> None:
        while not self._ending.wait(PAUSE_S):
            connection = self._connection()
            self._ask(connection)
            connection.close()

    def _call(self) -> None:
        """Over one HTTP/2 connection."""
        with grpc.InferenceServerClient(self._address) as client:
            while not self._ending.wait(PAUSE_S):
                try:
                    assert client.is_server_live(headers={"x-api-key": KEY}, client_timeout=TIMEOUT_S)
                    self.calls += 1
                except Exception as err:
                    self._lose(f"gRPC: {err}")

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("POST", "/predictions/mcqa", BODY, HEAD)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as err:
            self._lose(repr(err))
            connection.close()
            return
        if answer.status != 200:
            self._lose(f"{answer.status} {text!r}")
        self.versions.append(answer.headers["x-model-version"])

    def _lose(self, why: str) -> None:
        self.lost.append(f"{time.strftime('%H:%M:%S')} {why}")


def document(store: Path, default: str) -> dict[str, Any]:
    """All archives of an image, by what is in them."""
    versions = {
        archive.version: {"archive": digest_of(archive), "file": archive.path.name, "workers": 1}
        for archive in map(read_archive, sorted(store.glob("*.mar")))
    }
    return {"models": {"mcqa": {"default": default, "versions": versions}}}


def takes(pod: Pod, key: str) -> bool:
    """Whether the pod answers a client with this key."""
    url = f"http://{pod.address}:{pod.gateway_port}/predictions/mcqa"
    return requests.post(url, json=REQUEST, headers={"x-api-key": key}, timeout=TIMEOUT_S).status_code == 200


@pytest.fixture
def pods(make_site: Callable[..., Site]) -> Iterator[list[Pod]]:
    """Two of a first image with mcqa 1.0, and two of the next one with 1.0 and 2.0; none is started."""
    made = []
    for number, address in enumerate(loopback_addresses(4)):
        site = make_site("1.0") if number < 2 else make_site("1.0", "2.0")
        made.append(Pod(f"pod-{number}", site, address))
    yield made
    for pod in made:
        pod.kill()


def test_a_rolling_update_another_state_and_keys_under_load_lose_no_request(pods: list[Pod], tmp_path: Path) -> None:
    *old, first, second = pods
    service = Service(tmp_path / "service")
    try:
        for pod in old:
            pod.start(document(pod.site.store, "1.0"), [KEY])
            service.add(pod)
        service.wait_ready(*old)
        clients = Clients(service.url)
        took = []
        with clients.asking(), ThreadPoolExecutor(1) as cluster:
            until(lambda: clients.answered_by("1.0"), 60)
            # No more than one pod more than wanted, none less: the next one starts while the first of the old ends.
            first.start(document(first.site.store, "2.0"), [KEY])
            service.add(first)
            service.wait_ready(first)
            ending = cluster.submit(old[0].delete)
            second.start(document(second.site.store, "2.0"), [KEY])
            service.add(second)
            service.wait_ready(second)
            took += [ending.result(), old[1].delete()]
            until(lambda: clients.answered_by("2.0"), 60)
            assert service.ready() == {first.address, second.address}
            updated = len(clients.versions)
            for pod in (first, second):
                pod.state_volume.write({"state.yaml": json.dumps(document(pod.site.store, "1.0"))})
            began = time.monotonic()
            until(lambda: clients.answered_by("1.0"), 60)
            followed_s = time.monotonic() - began
            assert not any(takes(pod, NEXT_KEY) for pod in (first, second))
            for pod in (first, second):
                pod.set_keys([KEY, NEXT_KEY])
            until(lambda: all(takes(pod, NEXT_KEY) for pod in (first, second)), 60)
            figures = requests.get(f"{first.metrics}/metrics", timeout=10).text
        assert clients.lost == []
        assert Counter(clients.versions[:updated]).keys() == {"1.0", "2.0"}
        assert clients.calls > 50
        for name in ("marctl_workers_ready", "marctl_part_up", "gateway_attempts_total"):
            assert f"\n{name}{{" in figures
        print(
            f"{len(clients.versions)} requests and {clients.calls} calls, none lost; pods ended within "
            f"{max(took):.1f} s; both followed the state within {followed_s:.1f} s"
        )
    finally:
        service.stop()
