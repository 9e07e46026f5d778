"""A gateway before stand-ins for TorchServe, for tests of what Envoy does with answers, failures and silence."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgspec
import requests

from marctl.core.http import HOST
from marctl.core.process import Identity
from marctl.gateway import counts, envoy
from marctl.gateway.counts import Attempts
from marctl.gateway.health import Health, Workers, routed
from marctl.gateway.names import Role
from marctl.gateway.policies import Traffic
from marctl.gateway.settings import GatewaySettings
from marctl.stack.ports import free_port

Reply = tuple[int, dict[str, str], bytes]
SERVED = {"mcqa": ["1.0", "2.0", "3.0"], "embed": ["1.0"]}


class Standin(ThreadingHTTPServer):
    """Answers as TorchServe would, by version; `seen` tells what came."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.behave: dict[str, Callable[[Standin], Reply]] = {}
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.others: list[str] = []
        """What came by another method than POST."""
        self.release = Event()
        Thread(target=self.serve_forever, daemon=True).start()

    def forget(self) -> None:
        """As it was when it started."""
        self.behave.clear()
        self.seen.clear()
        self.others.clear()
        self.release.clear()

    def shutdown(self) -> None:
        super().shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def versions_seen(self) -> list[str]:
        return [version_in(path) for path, _, _ in self.seen]


def version_in(path: str) -> str:
    return path.partition("?")[0].rpartition("/")[2]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Standin

    def do_GET(self) -> None:
        self.server.others.append(f"{self.command} {self.path}")
        self.send_error(404)

    do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_TRACE = do_PROPFIND = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        version = version_in(self.path)
        code, headers, content = self.server.behave.get(version, answer)(self.server)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


def answer(_: Standin) -> Reply:
    return 200, {"content-type": "application/json"}, b'{"prediction": 1}'


def fails(code: int, message: str = 'Model "x" has no worker') -> Callable[[Standin], Reply]:
    """As TorchServe words it."""
    body = {"code": code, "type": "InternalServerException", "message": message}
    return lambda _: (code, {"content-type": "application/json"}, json.dumps(body, indent=2).encode())


def refuses(code: int) -> Callable[[Standin], Reply]:
    """As a handler of ours words it."""
    head = {"content-type": "application/json", "x-model-version": "2.0"}
    return lambda _: (code, head, b'{"error": "some_error", "detail": "why"}')


def hangs(server: Standin) -> Reply:
    server.release.wait(20)
    return answer(server)


def waits(server: Standin) -> Reply:
    time.sleep(0.2)
    return answer(server)


@dataclass
class TestGateway:
    """A running gateway; its policies may be changed."""

    __test__ = False
    envoy: envoy.Envoy
    process: Identity
    served: Mapping[str, list[str]]
    policies: dict[str, Traffic] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.envoy.address

    def set(self, **fields: Any) -> None:
        """A new policy for mcqa."""
        self.policies = all_documents(self.served, Traffic(**fields))
        self.envoy.apply(self.served, self.policies)

    def ask(self, path: str = "/predict", body: Any = None, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(self.url + path, json=body or {"question": "?"}, headers=named, timeout=20)

    @property
    def probes(self) -> str:
        return self.envoy.probes

    def watcher(self, heartbeats: Path) -> Health:
        return Health(self.envoy.folder, self.envoy.hosts, heartbeats)

    def look(self, health: Health, *sick: str, pid: int = os.getpid()) -> None:
        """One step: all versions have a worker, whose process is `pid`, but those of mcqa that are sick."""
        workers = [
            Workers(model, version, () if model == "mcqa" and version in sick else (pid,), (True,))
            for model, versions in self.served.items()
            for version in versions
        ]
        health.step([replace(w, ready=w.ready[: len(w.pids)]) for w in workers], routed(self.policies))

    def attempts(self, version: str, role: Role, model: str = "mcqa") -> Attempts:
        """Running totals."""
        return counts.read(self.admin_page(counts.STATS)).get((model, version, role), Attempts())

    def admin_page(self, path: str) -> str:
        return requests.get(self.envoy.admin + path, timeout=20).text

    def stop(self) -> None:
        self.envoy.stop()


def all_documents(served: Mapping[str, list[str]], mcqa: Traffic) -> dict[str, Traffic]:
    return {model: Traffic(split={versions[0]: 1}) for model, versions in served.items()} | {"mcqa": mcqa}


def open_gateway(folder: Path, torchserve: str, settings: GatewaySettings | None = None, **fields: Any) -> TestGateway:
    """A started gateway with a policy for mcqa."""
    policies = all_documents(SERVED, Traffic(**(fields or {"split": {"1.0": 80, "2.0": 20}})))
    urls = dict.fromkeys(("inference", "management", "metrics"), torchserve)
    folders = folder / "gateway", folder / "logs" / "gateway.log"
    chosen = msgspec.structs.replace(settings or GatewaySettings(), probe_port=free_port())
    gateway = envoy.Envoy(*folders, urls, free_port(), free_port(), chosen)
    return TestGateway(gateway, gateway.start(SERVED, policies), SERVED, policies)


@contextmanager
def gateway_with_server(
    folder: Path, settings: GatewaySettings | None = None, **fields: Any
) -> Iterator[tuple[Standin, TestGateway]]:
    """A gateway before a stand-in, until the end of the block; `fields` of mcqa's policy."""
    server = Standin()
    try:
        opened = open_gateway(folder, server.url, settings, **fields)
        try:
            yield server, opened
        finally:
            server.release.set()
            opened.stop()
    finally:
        server.shutdown()


def self_signed(folder: Path) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1 and of its key."""
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key]
    subprocess.run(["openssl", "req", "-x509", *options], check=True, capture_output=True)
    return certificate, key


def until(true: Callable[[], bool], timeout_s: float = 15.0, missing: Callable[[], object] = lambda: "") -> None:
    """Wait until it is true; `missing` says what was not, for the failure's message."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, missing()
        time.sleep(0.02)


VERSION = re.compile(rb"^x-model-version: (\S+)\r$", re.MULTILINE)


def versions_of(url: str, users: list[str], header: str = "x-user-id") -> list[str]:
    """The version that answers each user, in order; many requests on one connection, without waiting in between."""
    host, port = url.removeprefix("http://").split(":")
    found: list[str] = []
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for start in range(0, len(users), 200):
            some = users[start : start + 200]
            requests_ = (
                f"POST /predictions/mcqa HTTP/1.1\r\nhost: x\r\n{header}: {user}\r\ncontent-length: 0\r\n\r\n"
                for user in some
            )
            connection.sendall("".join(requests_).encode())
            received = b""
            # A whole answer ends with its body, {}.
            while received.count(b"\r\n\r\n{}") < len(some):
                part = connection.recv(1 << 16)
                assert part, received[-500:]
                received += part
            found += [version.decode() for version in VERSION.findall(received)]
    assert len(found) == len(users)
    return found
