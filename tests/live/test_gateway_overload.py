"""Clients that take memory and connections and give nothing back: others are answered, and it ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests

from marctl.gateway.settings import GatewaySettings
from tests.live.envoys import TestGateway, gateway_with_server, until

pytestmark = pytest.mark.live
MEMORY_MB, CONNECTIONS, TIMEOUT_S = 256, 300, 1.8
ATTACKERS, STREAMS = 50, 100
USED_AT_REST_MB = 40
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGateway]:
    settings = GatewaySettings(memory_mb=MEMORY_MB, connections=CONNECTIONS, request_timeout_s=TIMEOUT_S)
    folder = tmp_path_factory.mktemp("overload")
    with gateway_with_server(folder, settings, split={"1.0": 100}) as (_, opened):
        opened.look(opened.watcher(Path("/nowhere")))
        yield opened


def connect(gateway: TestGateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def memory_mb(gateway: TestGateway) -> float:
    return float(psutil.Process(gateway.process.pid).memory_info().rss / (1 << 20))


def used_mb(gateway: TestGateway) -> float:
    """Of the process's memory, what is not free for Envoy's own use."""
    return float(int(json.loads(gateway.admin_page("/memory"))["allocated"]) / (1 << 20))


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def never_read(path: bytes) -> bytes:
    """An HTTP/2 client's 100 requests, whose answers' bodies may have no byte until it says so; it won't."""
    initial_window = (4).to_bytes(2, "big") + (0).to_bytes(4, "big")
    # Indexed fields for GET and http; path and host as literals.
    head = b"\x82\x86" + b"\x04" + bytes([len(path)]) + path + b"\x01\x01x"
    requests_ = [frame(1, 5, 2 * number + 1, head) for number in range(STREAMS)]
    return PREFACE + frame(4, 0, 0, initial_window) + b"".join(requests_)


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json"])
def test_answers_that_nobody_reads_hold_a_bounded_heap_and_nothing_in_the_end(gateway: TestGateway, path: str) -> None:
    """Of /metrics they held 800 MB, for good. What is free again, Envoy's allocator may keep for the next one."""
    with ExitStack() as opened, highest_memory(gateway) as highest:
        for _ in range(ATTACKERS):
            attacker = opened.enter_context(connect(gateway))
            with suppress(OSError):
                attacker.sendall(never_read(path.encode()))
        began, codes = time.monotonic(), []
        while time.monotonic() - began < TIMEOUT_S * 2:
            assert requests.get(f"{gateway.probes}/healthz", timeout=20).status_code == 200
            codes.append(gateway.ask().status_code)
            time.sleep(0.05)
        until(lambda: used_mb(gateway) < USED_AT_REST_MB, timeout_s=TIMEOUT_S * 4)
    assert highest[0] < MEMORY_MB * 2
    assert codes[-1] == 200


@contextmanager
def highest_memory(gateway: TestGateway) -> Iterator[list[float]]:
    """Of Envoy, in MB, looked at 20 times a second."""
    highest, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            highest[0] = max(highest[0], memory_mb(gateway))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        stop.set()
        watcher.join()


def test_silent_connections_shut_nobody_out_for_long_and_probes_never(gateway: TestGateway) -> None:
    """A third of the time that a request has, not five minutes."""
    with ExitStack() as opened:
        began = time.monotonic()
        for _ in range(CONNECTIONS + 20):
            with suppress(OSError):
                opened.enter_context(connect(gateway))
        with pytest.raises(requests.ConnectionError):
            gateway.ask()
        assert requests.get(f"{gateway.probes}/healthz", timeout=20).status_code == 200
        assert requests.get(f"{gateway.probes}/ready", timeout=20).status_code == 200
        until(lambda: answers(gateway), timeout_s=TIMEOUT_S / 3 + 2)
        assert time.monotonic() - began < TIMEOUT_S


def answers(gateway: TestGateway) -> bool:
    try:
        return gateway.ask().status_code == 200
    except requests.ConnectionError:
        return False


def test_probes_end_who_keeps_their_connections(gateway: TestGateway) -> None:
    port = int(gateway.probes.rsplit(":", 1)[1])
    with ExitStack() as opened:
        held = [opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(100)]
        until(lambda: probed(gateway), timeout_s=8)
        assert len(held) == 100


def probed(gateway: TestGateway) -> bool:
    try:
        return requests.get(f"{gateway.probes}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_a_second_gateway_gets_no_share_of_the_port(gateway: TestGateway) -> None:
    """Linux would let both listen, and deal connections out between them."""
    port = int(gateway.url.rsplit(":", 1)[1])
    with socket.socket() as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            second.bind(("127.0.0.1", port))
