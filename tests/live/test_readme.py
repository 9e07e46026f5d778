"""Commands in the READMEs do what is said, in their order, and print what is shown (`...` stands for anything)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import requests

from marctl.stack.ports import choose_ports
from tests.live.conftest import PROJECT
from tests.tiny_tables import save_xgboost, specification

pytestmark = pytest.mark.live

GUIDES = ["handlers", "model_store", "scripts", "scripts/gateway", "scripts/records", "scripts/batch", "scripts/stack"]
TEXT = "\n".join((PROJECT / folder / "README.md").read_text() for folder in ["", *GUIDES])
"""As somebody would read them, one after the other."""
BIN = Path(sys.executable).parent
TIMEOUT_S = 300


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A copy of the project as git holds it, with models of the user's beside it."""
    copy = tmp_path_factory.mktemp("checkout") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (PROJECT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, copy / name)
    shutil.copytree(tiny_model("roberta"), copy / "my_model")
    save_xgboost(copy / "risk.json")
    (copy / "features.yaml").write_bytes(msgspec.yaml.encode(specification()))
    for archive in (PROJECT / "model_store" / "archives").glob("*.mar"):
        (copy / "model_store" / "archives").mkdir(exist_ok=True)
        shutil.copy2(archive, copy / "model_store" / "archives")
    return copy


@pytest.fixture(scope="module")
def environ(checkout: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(checkout), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def run(checkout: Path, environ: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """Runs one README command on ports of its own; serve.sh's own part, the installation, is left out."""
    ports = choose_ports(0, 0, 0)
    up = f"marctl up --gateway-port {ports.gateway} --port {ports.inference}"
    up += f" --management-port {ports.management} --metrics-port {ports.metrics}"

    def translate(text: str) -> str:
        text = text.replace("scripts/serve.sh", up).replace("127.0.0.1:8080", f"127.0.0.1:{ports.inference}")
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{ports.gateway}")
        text = text.replace("127.0.0.1:8081", f"127.0.0.1:{ports.management}")
        return text.replace("127.0.0.1:8082", f"127.0.0.1:{ports.metrics}")

    def command(block: str) -> str:
        line, _, expected = block.partition("\n")
        done = subprocess.run(
            translate(line), shell=True, cwd=checkout, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        assert matches(translate(expected), done.stdout), f"$ {line}\n{done.stdout}\n--- shown is:\n{expected}"
        assert probabilities(done.stdout) == pytest.approx(probabilities(expected), abs=0.02)
        return done.stdout

    yield command
    subprocess.run(["marctl", "down"], cwd=checkout, env=environ, check=False, capture_output=True)


def matches(expected: str, printed: str) -> bool:
    """Equal but for `...` and the last digits of numbers, which differ between processors."""
    pattern = "".join(".*?" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", expected.strip()))
    loose = re.sub(r"(\d)\\\.(\d)\d+", r"\1\\.\\d+", pattern)
    return re.fullmatch(loose, printed.strip(), re.DOTALL) is not None


def probabilities(text: str) -> list[float]:
    """Those of an answer; none in any other text."""
    found = re.search(r'"probabilities":\[(.*?)\]', text)
    return [float(number) for number in found.group(1).split(",")] if found else []


@pytest.mark.timeout(900)  # all guides on one stack: two minutes on two quiet cores
def test_console_blocks_print_what_they_show(run: Callable[[str], str]) -> None:
    shown = blocks("console")
    assert len(shown) >= 5
    for block in shown:
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            run(command)


def test_handlers_alone_serve_through_torch_model_archiver(checkout: Path, environ: dict[str, str]) -> None:
    [script] = [block for block in blocks("sh") if "torch-model-archiver" in block]
    *prepare, start = script.strip().rsplit("\n", 1)
    (checkout / "model_store" / "archives").mkdir(exist_ok=True)
    own = {**environ, "TMPDIR": str(checkout.parent)}
    subprocess.run("\n".join(prepare), shell=True, cwd=checkout, env=own, check=True, capture_output=True)
    ports = choose_ports(0, 0, 0)
    config = (checkout / "config.properties").read_text().replace("load_models=all", "load_models=none")
    for kind, port in (("inference", ports.inference), ("management", ports.management), ("metrics", ports.metrics)):
        config = re.sub(rf"(?m)^{kind}_address=.*$", f"{kind}_address=http://127.0.0.1:{port}", config)
    config += f"grpc_inference_port={ports.grpc_inference}\ngrpc_management_port={ports.grpc_management}\n"
    config += f"initial_worker_port={ports.workers}\n"
    (checkout / "config.properties").write_text(config)
    server = subprocess.Popen(
        start.split(), cwd=checkout, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{ports.inference}/predictions/my-qa/1.0"
        answer = wait_for(lambda: requests.post(url, json={"question": "Why?", "choices": ["a", "b"]}, timeout=30))
        assert answer.json()["model"] == "my-qa"
    finally:
        family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
        for process in family:
            process.send_signal(signal.SIGKILL)
        server.wait()


def wait_for(ask: Callable[[], requests.Response]) -> requests.Response:
    """The first answer of 200, within two minutes."""
    deadline = time.monotonic() + 120
    while True:
        try:
            response = ask()
        except requests.ConnectionError:
            response = None
        if response is not None and response.status_code == 200:
            return response
        assert time.monotonic() < deadline, response.text if response is not None else "no answer"
        time.sleep(0.5)
