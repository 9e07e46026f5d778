"""What of TorchServe's known holes a client of the gateway, a process of this machine and an archive can reach.

scripts/README.md says what follows from it.
"""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import psutil
import pytest
import requests
import yaml

from marctl.stack.management import Management
from marctl.stack.ports import free_port
from marctl.stack.state import Running, State
from tests.live.conftest import Site
from tests.tiny_archives import ANSWER, CONSTANT, REQUEST, tiny_archive

pytestmark = pytest.mark.live
API_KEY, REDIS_PASSWORD, CLOUD_SECRET = "key-of-ann-1f6c", "password-of-redis-8a2d", "secret-of-a-cloud-77e0"
SPY = f"""
import json, os

def handle(data, context):
    if data is None:
        return None
    for i in range(len(data)):
        context.set_response_content_type(i, "application/json")
    told = {ANSWER!r} | {{"environment": dict(os.environ), "user": os.getuid(), "folder": os.getcwd()}}
    return [json.dumps(told).encode()] * len(data)
"""
MANAGEMENT_CALLS = [
    ("POST", "/models?url=mcqa-2.0.mar&initial_workers=1"),
    ("POST", "/models?url=file:///tmp/evil.mar"),
    ("POST", "/models?url=http://127.0.0.1/evil.mar"),
    ("PUT", "/models/mcqa/1.0?min_worker=0"),
    ("PUT", "/models/mcqa/1.0/set-default"),
    ("DELETE", "/models/mcqa/1.0"),
    ("GET", "/models"),
    ("GET", "/models/mcqa/1.0"),
    ("GET", "/token?type=management"),
    ("POST", "/workflows?url=evil.war"),
    ("POST", "/wfpredict/evil"),
    ("OPTIONS", "/"),
    ("GET", "/api-description"),
    ("POST", "/invocations"),
    ("POST", "/models/mcqa/invoke"),
    ("POST", "/mcqa/predict"),
    ("POST", "/predictions/..%2f..%2fmodels?url=mcqa-2.0.mar"),
    ("POST", "/predictions/mcqa/1.0/../../../models?url=mcqa-2.0.mar"),
    ("POST", "//models?url=mcqa-2.0.mar"),
    ("GET", "/config_dump"),
    ("POST", "/quitquitquit"),
]
LIST_MODELS = "/org.pytorch.serve.grpc.management.ManagementAPIsService/ListModels"


@dataclass
class Exposed:
    """A stack that asks for a key, and whose operator has secrets in the environment."""

    site: Site
    gateway: str

    @property
    def running(self) -> Running:
        found = State(self.site.state).running()
        assert found is not None
        return found

    @property
    def management(self) -> Management:
        return Management(self.running.management)

    def models(self) -> list[str]:
        return sorted(
            f"{name} {each.version}" for name in self.management.models() for each in self.management.versions(name)
        )

    def call(self, method: str, path: str) -> requests.Response:
        return requests.request(method, self.gateway + path, headers={"x-api-key": API_KEY}, json=REQUEST, timeout=30)


@pytest.fixture(scope="module")
def exposed(make_site: Callable[..., Site]) -> Iterator[Exposed]:
    site = make_site()
    tiny_archive(site.store, handler=SPY)
    site.environ |= {
        "REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:{free_port()}/0",
        "AWS_SECRET_ACCESS_KEY": CLOUD_SECRET,
        "HF_TOKEN": CLOUD_SECRET,
        "DATABASE_PASSWORD": CLOUD_SECRET,
    }
    config = site.folder / "gateway.yaml"
    config.write_text(yaml.safe_dump({"api_keys": {"ann": API_KEY}}))
    gateway = site.call(*site.up_arguments, "--gateway-config", str(config), "--detach")["gateway"]
    yield Exposed(site, gateway)
    site.run("down")


@pytest.mark.parametrize(("method", "path"), MANAGEMENT_CALLS, ids=lambda value: str(value)[:40])
def test_a_client_reaches_nothing_of_the_management(exposed: Exposed, method: str, path: str) -> None:
    before = exposed.models()
    answer = exposed.call(method, path)
    assert answer.status_code in (400, 404, 405), answer.text
    assert "error" in answer.json()
    assert exposed.models() == before == ["mcqa 1.0"]


def test_a_client_reaches_no_management_over_grpc(exposed: Exposed) -> None:
    with grpc.insecure_channel(exposed.gateway.removeprefix("http://")) as channel:
        call = channel.unary_unary(LIST_MODELS)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=[("x-api-key", API_KEY)], timeout=10)
    assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)


def test_no_address_but_loopback_reaches_anything(exposed: Exposed) -> None:
    listening = {
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in exposed.site.processes() + exposed.site.reconcilers()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) >= 7
    assert {ip.removeprefix("::ffff:") for _, ip, _ in listening} == {"127.0.0.1"}
    others = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    for ip in others:
        for _, _, port in listening:
            with socket.socket() as probe:
                probe.settimeout(2)
                assert probe.connect_ex((ip, port)) != 0


class Bait(BaseHTTPRequestHandler):
    """Counts who asks."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_torchserve_loads_no_url_whoever_asks_it(exposed: Exposed, tmp_path: Path) -> None:
    """CVE-2023-43654 and CVE-2024-35198: remote archives, and `..` past the list of allowed URLs."""
    evil = tiny_archive(tmp_path, "evil", "1.0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bait)
    Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    for url in (
        f"http://127.0.0.1:{port}/evil.mar",
        f"http://127.0.0.1:{port}/a/../evil.mar",
        f"HTTP://127.0.0.1:{port}/evil.mar",
        f"http://none@127.0.0.1:{port}/evil.mar",
        f"https://127.0.0.1:{port}/evil.mar",
        f"ftp://127.0.0.1:{port}/evil.mar",
        f"s3://127.0.0.1:{port}/evil.mar",
        f"file://{evil}",
        f"file:{evil}",
        f"file:///none/..{evil}",
        f"../..{evil}",
    ):
        answer = requests.post(f"{exposed.running.management}/models", params={"url": url}, timeout=30)
        assert answer.status_code in (400, 404), (url, answer.text)
    server.shutdown()
    server.server_close()
    assert Bait.asked == 0
    assert exposed.models() == ["mcqa 1.0"]


def test_a_process_of_this_machine_can_have_its_code_loaded(exposed: Exposed, tmp_path: Path) -> None:
    """What remains open: the management port and its gRPC twin ask nobody who they are, and take a folder by its path.

    Whoever closes it changes scripts/README.md, which says so.
    """
    with grpc.insecure_channel(f"127.0.0.1:{exposed.running.ports.grpc_management}") as channel:
        assert b"mcqa" in channel.unary_unary(LIST_MODELS)(b"\x08\x64", timeout=10)  # at most 100
    folder = tmp_path / "evil"
    with zipfile.ZipFile(tiny_archive(tmp_path, "evil", "1.0", CONSTANT)) as file:
        file.extractall(folder)
    exposed.management.register(folder)
    assert exposed.models() == ["evil 1.0", "mcqa 1.0"]
    assert exposed.call("POST", "/predictions/evil/1.0").status_code == 404
    exposed.management.unregister("evil", "1.0")


def test_an_archive_runs_as_the_user_and_sees_no_secret_but_the_cache_and_log(exposed: Exposed) -> None:
    told = exposed.call("POST", "/predictions/mcqa").json()
    assert told["user"] == os.getuid()
    assert REDIS_PASSWORD in told["environment"]["REDIS_URL"]
    assert CLOUD_SECRET not in json.dumps(told["environment"])
    assert str(exposed.site.state) in told["folder"]


def test_no_secret_is_shown(exposed: Exposed) -> None:
    """Neither in logs, command lines, figures, history, reports nor errors; files that hold one are private."""
    secrets = [API_KEY, REDIS_PASSWORD, CLOUD_SECRET]
    wrong = {"x-api-key": API_KEY[:-1] + "x"}
    shown = {
        "error": requests.post(f"{exposed.gateway}/predict", json=REQUEST, headers=wrong, timeout=30).text,
        "no key": requests.post(f"{exposed.gateway}/predict", json=REQUEST, timeout=30).text,
        "not found": exposed.call("POST", f"/predictions/nosuch?key={API_KEY[:4]}").text,
        "figures": exposed.call("GET", "/metrics").text,
        "health": exposed.call("GET", "/health").text,
        "openapi": exposed.call("GET", "/openapi.json").text,
        "status": exposed.site.run("status", "--json").stdout,
        "logs": exposed.site.run("logs").stdout,
        "log status": exposed.site.run("log", "status").stdout,
        "admin": requests.get(f"{exposed.running.gateway.admin}/config_dump?include_eds", timeout=30).text,  # type: ignore[union-attr]  # it is there
        "history": (exposed.site.state / "history.jsonl").read_text(),
    }
    for process in [*exposed.site.processes(), *exposed.site.reconcilers()]:
        with suppress(psutil.Error):
            shown[f"command of {process.name()} {process.pid}"] = " ".join(process.cmdline())
    for path in exposed.site.state.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o077:
            shown[str(path)] = path.read_bytes().decode(errors="replace")
    found = {(name, secret) for name, text in shown.items() for secret in secrets if secret in text}
    assert found == set()
    holding = [
        path for path in exposed.site.state.rglob("*") if path.is_file() and API_KEY.encode() in path.read_bytes()
    ]
    assert holding, "the check would find nothing anyway"
