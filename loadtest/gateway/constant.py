"""A server that answers everything at once with `{}`: one more Envoy."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marctl.core.http import HOST
from marctl.gateway.envoy import binary
from marctl.gateway.names import extension, socket_address, typed
from marctl.stack.ports import free_port

START_TIMEOUT_S = 20.0


@contextmanager
def constant_server(folder: Path) -> Iterator[str]:
    """Its URL, until the end of the block; `folder` gets its configuration."""
    port = free_port()
    path = folder / "constant.json"
    path.write_text(json.dumps(configuration(port)))
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
    process = subprocess.Popen([binary(), "-c", str(path), *options])
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not listens(port):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at {HOST}:{port} after {START_TIMEOUT_S:g} s")
            time.sleep(0.02)
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def configuration(port: int) -> dict[str, object]:
    everything = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "{}"}}}
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="constant",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [everything]}]},
        http_filters=[extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")],
    )
    listener = {
        "name": "constant",
        "address": socket_address(HOST, port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener]}}
