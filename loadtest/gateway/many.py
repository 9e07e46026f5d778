"""What registered versions cost the gateway: a real Envoy before a server that answers everything at once.

    python -m loadtest.gateway.many                      1, 100 and 1,000 models of two versions each
    python -m loadtest.gateway.many --models 1 5000      other numbers
    python -m loadtest.gateway.many --whole              each model with a fallback and a shadow, too

All gateways run side by side and take turns, so that what the machine does meanwhile touches all alike. Exit code 1 if
the most models cost more than the bars allow.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
import requests
from rich.console import Console
from rich.table import Table

from loadtest.gateway.constant import constant_server
from loadtest.machine import describe
from loadtest.stack import cpu_seconds
from marctl.gateway.envoy import Envoy
from marctl.gateway.health import Health, Workers, routed
from marctl.gateway.policies import Traffic
from marctl.gateway.settings import GatewaySettings
from marctl.stack.ports import free_port

VERSIONS = ["1.0", "2.0"]
PIPELINED = 50
"""Requests on their way at once, on one connection."""
USER = "x-user-id: someone\r\n"
TIMEOUT_S = 60.0
BARS = {"cpu_ratio": 1.3, "start_s": 5.0, "memory_mb": 300.0, "change_s": 1.0}
COLUMNS = {
    "start_s": "start, s",
    "memory_mb": "memory, MB",
    "request_ms": "CPU ms a request",
    "sticky_ms": "with a user id",
    "body_ms": "named in the body",
    "cpu_ratio": "ratio to the first",
    "change_s": "a weight, s",
    "change_cpu_s": "CPU-s of it",
    "register_s": "one more version, s",
    "death_s": "a worker's death, s",
    "look_ms": "CPU ms of a look at all workers",
    "ready_ms": "/ready, ms",
    "metrics_ms": "/metrics, ms",
    "metrics_kb": "/metrics, kB",
}


@dataclass
class Gateway:
    """A running gateway before many models, and what was measured of it."""

    envoy: Envoy
    models: int
    whole: bool
    process: psutil.Process = field(init=False)
    served: dict[str, list[str]] = field(init=False)
    policies: dict[str, Traffic] = field(init=False)
    found: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.served = {f"model-{number:05}": list(VERSIONS) for number in range(self.models)}
        self.policies = {model: self.policy(80) for model in self.served}
        began = time.monotonic()
        identity = self.envoy.start(self.served, self.policies)
        self.note("start_s", time.monotonic() - began)
        self.process = psutil.Process(identity.pid)

    @property
    def last(self) -> str:
        return list(self.served)[self.models - 1]

    def policy(self, weight: float) -> Traffic:
        further = {"fallback": ["1.0"], "shadow": {"1.0": 0.1}} if self.whole else {}
        return Traffic(split={"1.0": weight, "2.0": 100 - weight}, **further)  # type: ignore[arg-type]  # by kind

    def note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def ask_many(self, requests_: int) -> None:
        """CPU per request for the last model."""
        path, named = f"/predictions/{self.last}", json.dumps({"model": self.last}).encode()
        for name, head, body, where in (
            ("request_ms", "", b"", path),
            ("sticky_ms", USER, b"", path),
            ("body_ms", "content-type: application/json\r\n", named, "/predict"),
        ):
            before = cpu_seconds(self.process)
            ask(self.envoy.port, where, head, body, requests_)
            self.note(name, (cpu_seconds(self.process) - before) / requests_ * 1000)

    def change(self, turn: int) -> None:
        """One weight of the last model."""
        self.policies[self.last] = self.policy(70 - turn)
        used = self.cpu_s()
        self.note("change_s", seconds(lambda: self.envoy.apply(self.served, self.policies)))
        self.note("change_cpu_s", self.cpu_s() - used)

    def cpu_s(self) -> float:
        """Of Envoy and of this process, which writes its files."""
        return cpu_seconds(self.process) + time.process_time()

    def register(self, turn: int) -> None:
        self.served[self.last].append(f"3.{turn}")
        self.note("register_s", seconds(lambda: self.envoy.apply(self.served, self.policies)))

    def kill(self, heartbeats: Path) -> None:
        """Until no request is sent to a version of which nobody is left. Its process is this one, which goes on."""
        health = Health(self.envoy.folder, self.envoy.hosts, heartbeats)
        url = f"{self.envoy.address}/predictions/{self.last}/2.0"
        self.look(health)
        used = time.process_time()
        self.look(health)
        self.note("look_ms", (time.process_time() - used) * 1000)
        began = time.monotonic()
        self.look(health, dead=(self.last, "2.0"))
        wait_for(lambda: requests.post(url, timeout=TIMEOUT_S).status_code == 503)
        self.note("death_s", time.monotonic() - began)
        self.look(health)
        wait_for(lambda: requests.post(url, timeout=TIMEOUT_S).status_code == 200)

    def look(self, health: Health, dead: tuple[str, str] | None = None) -> None:
        keys = [(model, version) for model, versions in self.served.items() for version in versions]
        alive, nobody = ((os.getpid(),), (True,)), ((), ())
        health.step([Workers(*key, *(nobody if key == dead else alive)) for key in keys], routed(self.policies))

    def show(self) -> None:
        for name in ("ready", "metrics"):
            began = time.monotonic()
            page = requests.get(f"{self.envoy.address}/{name}", timeout=TIMEOUT_S).content
            self.note(f"{name}_ms", (time.monotonic() - began) * 1000)
        self.note("metrics_kb", len(page) / 1000)
        self.note("memory_mb", self.process.memory_info().rss / (1 << 20))

    @property
    def summary(self) -> dict[str, float]:
        """Medians; of memory the last."""
        found = {name: median(values) for name, values in self.found.items()}
        return {"models": self.models, **found, "memory_mb": self.found["memory_mb"][-1]}


def seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {TIMEOUT_S:g} s in vain")


def ask(port: int, path: str, head: str, body: bytes, requests_: int) -> None:
    """On one connection, some at a time, which costs this side little. All must be answered with 200."""
    one = f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        for _ in range(requests_ // PIPELINED):
            connection.sendall(one * PIPELINED)
            received = b""
            while received.count(b"\r\n\r\n{}") < PIPELINED:
                part = connection.recv(1 << 18)
                received += part
                if not part or b"HTTP/1.1 4" in received or b"HTTP/1.1 5" in received:
                    raise RuntimeError(f"not answered: {received[-500:]!r}")


def measure(counts: Sequence[int], rounds: int, requests_: int, *, whole: bool) -> list[dict[str, float]]:
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        upstream = opened.enter_context(constant_server(folder))
        gateways = []
        for count in counts:
            gateways.append(Gateway(envoy_in(folder / str(count), upstream), count, whole))
            opened.callback(gateways[-1].envoy.stop)
            print(f"{count:,} models are served", file=sys.stderr)
        for turn in range(rounds):
            for gateway in gateways:
                gateway.ask_many(requests_)
                gateway.change(turn)
                gateway.register(turn)
                gateway.kill(folder)
                gateway.show()
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        found = [gateway.summary for gateway in gateways]
    return [row | {"cpu_ratio": row["request_ms"] / found[0]["request_ms"]} for row in found]


def envoy_in(folder: Path, upstream: str) -> Envoy:
    urls = dict.fromkeys(("inference", "management", "metrics"), upstream)
    settings = GatewaySettings(probe_port=free_port())
    return Envoy(folder / "gateway", folder / "gateway.log", urls, free_port(), free_port(), settings)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gateway.many", description="What registered versions cost."
    )
    parser.add_argument("--models", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000, help="of each kind and round")
    parser.add_argument("--whole", action="store_true", help="each model with a fallback and a shadow")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    asked = parser.parse_args()
    rows = measure(asked.models, asked.rounds, asked.requests, whole=asked.whole)
    load = os.getloadavg()[0]
    if asked.json:
        Path(asked.json).write_text(json.dumps({"machine": describe(), "load": load, "rows": rows}, indent=2) + "\n")
    table = Table("", *(f"{row['models']:,.0f} models" for row in rows), caption=f"load of the machine {load:.1f}")
    for name, title in COLUMNS.items():
        table.add_row(title, *(f"{row[name]:,.3g}" for row in rows))
    Console(width=100).print(table)
    missed = [f"{name} {rows[-1][name]:.3g} > {bar:g}" for name, bar in BARS.items() if rows[-1][name] > bar]
    print(f"missed: {', '.join(missed) or 'nothing'}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
