"""The image, built and run: pytest -m image tests/docker/test_image.py, as root; tests/docker/images.py says with what.

MARCTL_ARCHIVES names a folder of archives to serve; by default it holds one of a tiny model. Figures are written to
image.json in MARCTL_IMAGES.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import requests
import yaml
from packaging.utils import canonicalize_name

from marctl.build.adopt import adopt
from marctl.build.build import build as build_archive
from marctl.build.reader import read_archive
from marctl.stack.ports import free_port
from marctl.stack.redis_server import find_program
from marctl.stack.samples import request_body
from tests.docker import images
from tests.docker.containers import PORT, Container
from tests.docker.images import Image, mib
from tests.live.envoys import until

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]
MOST_MIB = 1900
GRACE_S = 90
"""As compose.yaml and the Kubernetes manifests allow."""
CLIENTS = 16
LOADED_S = 3.0
INNER_PORTS = (8080, 8081, 8082, 9901)
TOOLS = ("gcc", "cc", "make", "ld", "git", "pip", "pip3", "nvcc")
Question = tuple[str, dict[str, Any]]
"""A model, and its sample request."""


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield found
    (images.STORAGE / "image.json").write_text(json.dumps(found, indent=2) + "\n")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    images.require_tools()
    built = images.build()
    yield built
    built.close()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    folder.chmod(0o755)
    if given := os.environ.get("MARCTL_ARCHIVES"):
        for path in Path(given).glob("*.mar"):
            shutil.copy(path, folder)
    else:
        recipes = tmp_path_factory.mktemp("recipes")
        build_archive(adopt(tiny_model("bert"), "quiz", "1.0", recipes, precision="float32"), folder)
    return folder


@pytest.fixture(scope="module")
def question(archives: Path) -> Question:
    archive = read_archive(max(archives.glob("*.mar")))
    return archive.name, request_body(archive.samples[0].request, archive.metadata)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Path:
    """The volume that the container may write."""
    folder = tmp_path_factory.mktemp("state")
    os.chown(folder, *map(int, image.config["User"].split(":")))
    return folder


@pytest.fixture(scope="module")
def served(
    image: Image, archives: Path, state: Path, tmp_path_factory: pytest.TempPathFactory, figures: dict[str, Any]
) -> Iterator[Container]:
    """A container that serves, with Redis outside of it."""
    volumes = {"/var/lib/marctl": state, "/models": archives}
    made = Container(image, tmp_path_factory.mktemp("container"), volumes)
    made.connect()
    try:
        with outside_redis(made.host, tmp_path_factory.mktemp("redis")) as url:
            made.environ = {"REDIS_URL": url}
            made.start()
            figures["start_s"] = round(made.wait_ready(), 1)
            yield made
    finally:
        made.kill()
        made.disconnect()


@contextmanager
def outside_redis(host: str, folder: Path) -> Iterator[str]:
    """The URL of a Redis in no container."""
    port = free_port()
    options = {"--bind": host, "--port": str(port), "--protected-mode": "no", "--save": "", "--dir": str(folder)}
    command = [str(find_program()), *(word for pair in options.items() for word in pair)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://{host}:{port}/0"
    finally:
        process.terminate()
        process.wait()


def ask(container: Container, question: Question, **headers: str) -> requests.Response:
    url = f"{container.gateway}/predictions/{question[0]}"
    return requests.post(url, json=question[1], headers=headers, timeout=30)


# What was built


def test_holds_what_serving_needs_and_nothing_else(image: Image, figures: dict[str, Any]) -> None:
    root, packages = image.root, image.packages
    parts = sorted(((round(mib(path)), path.name) for path in packages.iterdir()), reverse=True)[:20]
    base = round(sum(mib(root / name) for name in ("usr", "var", "etc")))
    figures |= {"mib": round(mib(root)), "base_mib": base, "parts_mib": {name: size for size, name in parts}}
    assert mib(root) < MOST_MIB
    folders = [root / folder for folder in ("bin", "usr/bin", "usr/local/bin", "opt/marctl/bin")]
    assert not [folder / tool for folder in folders for tool in TOOLS if (folder / tool).exists()]
    assert not [path for path in packages.glob("**/tests") if path.is_dir()]
    assert not [path.name for path in packages.glob("nvidia*")]
    assert not (root / "src").exists()
    assert not list((root / "root").glob(".cache/*"))
    assert not list((root / "models").iterdir())


def test_every_module_is_compiled(image: Image) -> None:
    """Else each start of a worker compiles it again, since nothing can be written there."""
    missing = [
        path
        for path in image.packages.rglob("*.py")
        if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))
    ]
    assert [path.name for path in missing] == ["py312_intrinsics.py"]


def test_its_user_owns_nothing_but_the_state_folder(image: Image) -> None:
    owned = [path for path in image.root.rglob("*") if path.lstat().st_uid]
    # Debian's own: /var/cache/apt/archives/partial.
    assert [path for path in owned if path.lstat().st_uid != 42] == [image.root / "var/lib/marctl"]
    assert image.config["User"].split(":")[0] not in ("", "0")


def test_no_secret_of_the_build_is_in_it(image: Image) -> None:
    pip_conf = image.root / "etc/pip.conf"
    assert not pip_conf.exists()
    assert not {name for name in image.environ if "TOKEN" in name or "PASSWORD" in name or name.startswith("PIP_")}


def test_its_bill_of_materials_names_every_package(image: Image) -> None:
    bill = json.loads((image.root / "opt/marctl/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    told = {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}
    lock = (images.PROJECT / "docker/requirements/cpu.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    assert locked.items() <= told.items()
    assert told.keys() - locked.keys() == {"torchserve-marctl"}


def test_archives_come_with_an_image_of_their_own(image: Image, archives: Path) -> None:
    child = images.with_archives(image, archives)
    held = {path.name: path.lstat().st_mode & 0o777 for path in (child.root / "models").iterdir()}
    assert held == {path.name: 0o444 for path in archives.iterdir()}
    assert child.config["Entrypoint"] == image.config["Entrypoint"]
    child.close()


# What runs


def test_runs_as_its_user_without_rights_on_a_read_only_root(served: Container) -> None:
    user = int(served.image.config["User"].split(":")[0])
    for process in served.processes():
        assert set(process.uids()) == {user}
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        told = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert {told[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
        assert told["NoNewPrivs"] == "1"
    for path in ("/", "/opt/marctl", "/etc/marctl", "/models", "/usr", "/home"):
        assert served.run("touch", f"{path}/x").returncode != 0


def test_answers_a_prediction_at_the_gateway_and_nowhere_else(served: Container, question: Question) -> None:
    reply = ask(served, question)
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == question[0]
    assert requests.get(f"{served.probes}/healthz", timeout=5).ok
    assert "gateway_attempts_total" in requests.get(f"{served.figures}/metrics", timeout=5).text
    for port in INNER_PORTS:
        with socket.socket() as probe:
            probe.settimeout(5)
            assert probe.connect_ex((served.address, port)) != 0, port


def test_keeps_answers_in_the_redis_outside(served: Container, question: Question) -> None:
    ask(served, question)
    assert ask(served, question).headers["x-cache"] == "hit"
    assert redis.Redis.from_url(served.environ["REDIS_URL"]).dbsize() > 0
    assert not [p for p in served.processes() if "valkey-server" in p.name()]


def test_prints_lines_of_json_and_nothing_else(served: Container) -> None:
    lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert all({"time", "part", "message"} <= set(line) for line in lines)
    assert "serving" in [line["message"] for line in lines]


def test_commands_inside_need_no_options(served: Container) -> None:
    done = served.run("marctl", "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["store"] == "/models"


# Health


def test_healthcheck_asks_a_sample(served: Container, figures: dict[str, Any]) -> None:
    start = time.monotonic()
    done = served.run(*served.image.healthcheck)
    figures["healthcheck_s"] = round(time.monotonic() - start, 2)
    assert done.returncode == 0, done.stderr


def test_healthcheck_fails_while_a_worker_hangs(served: Container) -> None:
    workers = [p for p in served.processes() if "model_service_worker" in " ".join(p.cmdline())]
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        until(lambda: requests.get(f"{served.probes}/ready", timeout=5).status_code == 503)
        done = served.run(*served.image.healthcheck)
        assert done.returncode == 1
        assert "no_worker" in done.stderr
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    until(lambda: served.run(*served.image.healthcheck).returncode == 0, 30)


def test_orphans_are_collected(served: Container) -> None:
    """TorchServe dies; its workers, which nobody waits for, must not stay as zombies."""
    server = next(p for p in served.processes() if "java" in p.name())
    workers = server.children()
    server.kill()
    until(lambda: not any(psutil.pid_exists(each.pid) for each in (server, *workers)), 60)
    served.wait_ready()
    assert not [p for p in served.processes() if p.status() == psutil.STATUS_ZOMBIE]


# The end


class Load:
    """Clients that keep their connections, until nobody takes new ones."""

    def __init__(self, container: Container, question: Question) -> None:
        self.address, self.path = container.address, f"/predictions/{question[0]}"
        self.body = json.dumps(question[1])
        self.outcomes: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self.client, daemon=True) for _ in range(CLIENTS)]

    def client(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while True:
            if connection is None:
                connection = http.client.HTTPConnection(self.address, PORT, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    return  # the orderly end: the next one in line would take the request
            try:
                headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"}
                connection.request("POST", self.path, self.body, headers)
                reply = connection.getresponse()
                reply.read()
                self.outcomes[str(reply.status)] += 1
                if reply.will_close:
                    connection = None
            except (OSError, http.client.HTTPException) as err:
                self.outcomes[type(err).__name__] += 1
                connection = None

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def test_stops_under_load_without_losing_a_request(
    served: Container, question: Question, figures: dict[str, Any]
) -> None:
    load = Load(served, question)
    load.start()
    time.sleep(LOADED_S)
    code, seconds = served.stop(GRACE_S)
    load.join()
    figures |= {"stop_s": round(seconds, 1), "answers": dict(load.outcomes), "clients": CLIENTS}
    assert code == 0
    assert set(load.outcomes) == {"200"}
    assert load.outcomes["200"] > CLIENTS
    lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert lines[-1]["message"] == "stopped"


# Again, on what the former one left


def test_starts_again_after_a_power_failure(served: Container, question: Question) -> None:
    served.start()
    served.wait_ready()
    served.kill()
    served.start()
    served.wait_ready()
    assert ask(served, question).status_code == 200
    served.kill()


def test_follows_a_mounted_document(
    image: Image, served: Container, archives: Path, question: Question, tmp_path: Path, state: Path
) -> None:
    """As a ConfigMap: the folder is read-only inside, and a link in it is swapped."""
    archive = read_archive(max(archives.glob("*.mar")))
    version = {"archive": f"sha256:{archive.sha256}", "file": archive.path.name, "workers": 1}
    document = {"models": {archive.name: {"default": archive.version, "versions": {archive.version: version}}}}
    folder = tmp_path / "document"
    folder.mkdir()
    tmp_path.chmod(0o755)
    (folder / "state.yaml").write_text(yaml.safe_dump(document))
    served.volumes = {**served.volumes, "/etc/marctl/state": folder}
    served.arguments = [*image.config["Cmd"], "--follow", "/etc/marctl/state/state.yaml"]
    served.start()
    served.wait_ready()
    version["workers"] = 2
    (folder / "next.yaml").write_text(yaml.safe_dump(document))
    os.replace(folder / "next.yaml", folder / "state.yaml")

    def workers() -> int:
        rows = json.loads(served.run("marctl", "status", "--json").stdout)["versions"]
        return int(rows[0]["workers_ready"])

    until(lambda: workers() == 2, 60)
    assert ask(served, question).status_code == 200
    code, _ = served.stop(GRACE_S)
    assert code == 0
