"""A real TorchServe per fixture: its own folder, free ports, and proof that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from marctl.build.adopt import adopt
from marctl.build.build import build
from marctl.core.errors import UserError
from marctl.core.json_text import compact
from marctl.stack.look import status
from marctl.stack.state import State
from tests.tiny_archives import REQUEST, tiny_archive

PROJECT = Path(__file__).parents[2]
MARCTL = [sys.executable, "-c", "from marctl.cli import main; main(prog_name='marctl')"]
FREE_PORTS = ["--gateway-port", "0", "--port", "0", "--management-port", "0", "--metrics-port", "0"]
COMMAND_TIMEOUT_S = 120


@dataclass
class Site:
    """One state folder and one store, and marctl commands on them."""

    folder: Path
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def up_arguments(self) -> list[str]:
        return ["up", "--recipes", str(self.folder / "recipes"), "--store", str(self.store), *FREE_PORTS]

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        command = [*MARCTL, *arguments, "--state", str(self.state)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=PROJECT, env=self.environ, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_interrupts
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run_build(self) -> subprocess.CompletedProcess[str]:
        """`marctl build` of all recipes of this site."""
        command = [*MARCTL, "build", "--recipes", str(self.folder / "recipes"), "--store", str(self.store)]
        return subprocess.run(command, cwd=PROJECT, env=self.environ, capture_output=True, text=True, check=False)

    def call(self, *arguments: str) -> Any:
        """The JSON result of a command that must succeed.

        What all tests ask, the status, comes from the command's function: a process for each takes half a second of a
        core. That the command prints the same is a test of its own (test_stack.py).
        """
        if arguments == ("status",):
            return self.status()
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> Any:
        try:
            return json.loads(compact(status(State(self.state))))
        except UserError as err:
            raise AssertionError(str(err)) from err

    def up(self) -> Any:
        return self.call(*self.up_arguments, "--detach")

    def versions(self) -> dict[str, dict[str, Any]]:
        """`mcqa 1.0` to its row of the status."""
        return {f"{row['model']} {row['version']}": row for row in self.call("status")["versions"]}

    def default(self) -> list[str]:
        return [name for name, row in self.versions().items() if row["default"]]

    def ask(self, path: str) -> requests.Response:
        return requests.post(f"{self.call('status')['inference']}/predictions/{path}", json=REQUEST, timeout=30)

    def client(self, gateway: str, path: str = "/predict") -> requests.Response:
        """One question to the gateway."""
        return requests.post(gateway + path, json=REQUEST, timeout=30)

    def assert_nothing_left(self, listened: dict[str, Any]) -> None:
        for name in ("gateway", "inference", "management", "metrics"):
            assert not listening(listened[name])
        assert not self.processes()
        assert not (self.state / "tmp").exists()
        assert not (self.state / "running.json").exists()

    def processes(self) -> list[psutil.Process]:
        """Servers and workers of this site; every one names the state folder in its command line."""
        return [process for process in naming(str(self.state)) if is_server(process.info["cmdline"])]

    def kill(self) -> None:
        """All that runs for this site, those that start others first."""
        for process in [*self.reconcilers(), *naming(str(self.state))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def reconcilers(self) -> list[psutil.Process]:
        """The process that was left behind, by its command line."""
        found = psutil.process_iter(["cmdline"])
        return [
            p for p in found if "marctl.stack.up" in (p.info["cmdline"] or []) and str(self.state) in p.info["cmdline"]
        ]


def naming(folder: str) -> list[psutil.Process]:
    """Processes in whose command line a folder, or a file in it, is named."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(folder in word for word in process.info["cmdline"] or [])]


def hear_interrupts() -> None:
    """A shell that starts the tests in the background lets them, and their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_server(words: list[str]) -> bool:
    """Whether a command line is Envoy's, Redis's, TorchServe's or one of its workers'."""
    return any(
        name in word
        for word in words
        for name in ("ModelServer", "model_service_worker", "_bin/envoy", "valkey-server")
    )


def listening(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


MakeSite = Callable[..., Site]


@contextmanager
def sites(factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """Makes sites, and at the end of the block ends whatever still runs for them."""
    made: list[Site] = []

    def make(*versions: str, under: str = "") -> Site:
        site = Site(factory.mktemp("site") / under)
        for version in versions:
            tiny_archive(site.store, version=version)
        made.append(site)
        return site

    try:
        yield make
    finally:
        for site in made:
            site.kill()


@pytest.fixture(scope="module")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """What is left running would take processor time from the next file's tests."""
    with sites(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Iterator[Site]:
    """mcqa 1.9 and 1.10 are served."""
    served = make_site("1.9", "1.10")
    served.up()
    yield served
    served.run("down")


@pytest.fixture(scope="session")
def quiz_gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Iterator[Site]:
    """quiz 1.0 and 2.0, two tiny models in float32, are served behind a gateway."""
    with sites(tmp_path_factory) as make:
        site = make()
        for version, kind in (("1.0", "bert"), ("2.0", "distilbert")):
            build(adopt(tiny_model(kind), "quiz", version, site.folder / "recipes", precision="float32"), site.store)
        site.up()
        yield site
