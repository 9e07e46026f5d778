"""The wheel, in an environment of its own and with no file of this repository beside it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from tests.live.conftest import COMMAND_TIMEOUT_S, FREE_PORTS, PROJECT
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.live

SOURCES = ["setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "scripts", "handlers"]
SETTINGS = ["config.properties", "log4j2.xml", "metrics.yaml"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SCHEMAS = {
    ".github/workflows/archives.yml": ["--builtin-schema", "vendor.github-workflows"],
    ".gitlab-ci.yml": ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
}


@dataclass
class Installed:
    """An environment with the wheel, and the folder of somebody who works with it."""

    environment: Path
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        path = f"{self.environment / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return kept | {"PATH": path}

    def shell(self, script: str, folder: Path | None = None) -> str:
        """What it prints, as a CI system would run it. It must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder or self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert done.returncode == 0, f"$ {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def call(self, arguments: str) -> Any:
        return json.loads(self.shell(f"marctl {arguments} --json"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, since setuptools works beside them."""
    copy = tmp_path_factory.mktemp("sources")
    listed = ["git", "ls-files", "-co", "--exclude-standard", *SOURCES, *SETTINGS]
    for name in subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, copy / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The dependencies are those of the environment that runs the tests; marctl itself is the wheel's."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [*PIP, "--python", str(environment / "bin" / "python"), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)
    folder = tmp_path_factory.mktemp("user") / "models"
    folder.mkdir()
    return Installed(environment, folder)


@pytest.fixture(scope="module")
def project(installed: Installed) -> dict[str, Any]:
    """What `marctl init` did in the user's empty folder."""
    started: dict[str, Any] = installed.call("init")
    return started


def test_the_wheel_claims_two_names_and_holds_everything_that_is_read_beside_the_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        [about] = {name.split("/")[0] for name in names if ".dist-info/" in name}
        assert {name.split("/")[0] for name in names} == {"marctl", "marctl_handlers", about}
        assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if name.startswith(about)}
        for name in SETTINGS:
            assert file.read(f"marctl/stack/settings/{name}") == (PROJECT / name).read_bytes()
        assert "License-Expression: Apache-2.0" in file.read(f"{about}/METADATA").decode()
    for package, folder in (("marctl", "scripts"), ("marctl_handlers", "handlers")):
        files = [path for path in (PROJECT / folder).rglob("*") if path.is_file()]
        read = [path for path in files if path.suffix not in (".pyc", ".sh", ".md")]
        assert {f"{package}/{path.relative_to(PROJECT / folder)}" for path in read} <= set(names)


def test_every_module_comes_from_the_wheel(installed: Installed) -> None:
    code = "import sys, marctl, marctl_handlers; print(marctl.__file__, marctl_handlers.__file__, *sys.path, sep='\\n')"
    printed = installed.shell(f"python -c {shlex.quote(code)}", installed.folder).splitlines()
    assert all(Path(path).is_relative_to(installed.environment) for path in printed[:2])
    assert not ours("\n".join(printed))


def test_from_an_empty_folder_to_an_answer(installed: Installed, project: dict[str, Any]) -> None:
    """init, build, up, one's own model, a prediction, down; and no process of it uses a file of the repository."""
    save_tiny("bert", installed.folder / "my_model")
    installed.shell("marctl build --from ./my_model --name quiz --version 1.0")
    assert installed.shell("marctl build").count("\n") == 2
    served = installed.call(f"up --detach {shlex.join(FREE_PORTS)}")
    try:
        answer = requests.post(f"{served['gateway']}/predictions/hello", json={"name": "Ada"}, timeout=30)
        assert answer.json()["greeting"] == "Hello, Ada!"
        question = {"question": "Which one?", "choices": ["a knife", "a cloud"]}
        answer = requests.post(f"{served['gateway']}/predictions/quiz", json=question, timeout=30)
        assert answer.json()["prediction"] in (0, 1)
        found = [trace(process) for process in processes(installed.call("status"))]
        assert len(found) >= 6
        assert not [line for text in found for line in ours(text)]
    finally:
        installed.shell("marctl down")


def processes(status: dict[str, Any]) -> list[psutil.Process]:
    """All that runs: reconciler, TorchServe, Envoy, Redis, workers."""
    pids = [status[name] for name in ("reconciler_pid", "pid", "gateway_pid", "redis_pid", "features_pid")]
    return [psutil.Process(pid) for pid in [*pids, *(pid for row in status["versions"] for pid in row["pids"])]]


def trace(process: psutil.Process) -> str:
    """Every path that a process was started with, or holds."""
    with process.oneshot():
        words = [*process.cmdline(), process.cwd(), *process.environ().values()]
        return "\n".join([*words, *(file.path for file in process.open_files()), *mapped(process)])


def mapped(process: psutil.Process) -> list[str]:
    return [area.path for area in process.memory_maps()]


def ours(text: str) -> list[str]:
    """Paths in this repository; its environment is where the dependencies lie."""
    return [found for found in re.findall(rf"{PROJECT.resolve()}/[^\s:]*", text) if "/.venv/" not in found]


def test_the_users_own_settings_win(installed: Installed) -> None:
    code = "from marctl.stack.torchserve import project_file; print(project_file('config.properties'))"
    command = f"python -c {shlex.quote(code)}"
    shipped = Path(installed.shell(command).strip())
    assert shipped.is_relative_to(installed.environment)
    own = installed.folder / "config.properties"
    shutil.copy(shipped, own)
    try:
        assert Path(installed.shell(command).strip()) == own.resolve()
    finally:
        own.unlink()


def test_an_archive_is_the_same_from_the_wheel_and_from_a_clone(installed: Installed, project: dict[str, Any]) -> None:
    from marctl.build.build import build
    from marctl.build.reader import read_archive
    from marctl.build.recipe import read_version

    installed.shell("marctl build hello 1.0")
    path, _ = build(read_version(installed.folder / "model_store/hello/1.0"), installed.folder / "beside")
    assert read_archive(path).sha256 == read_archive(installed.folder / "model_store/archives/hello-1.0.mar").sha256


def github(content: Any) -> tuple[list[str], list[str]]:
    """Commands and kept paths of a workflow. YAML 1.1 takes its key `on` for true."""
    assert content[True]["push"]
    steps = content["jobs"]["archives"]["steps"]
    return [step["run"] for step in steps if "run" in step], [
        s["with"]["path"] for s in steps if s.get("name") == "Upload"
    ]


def gitlab(content: Any) -> tuple[list[str], list[str]]:
    return content["archives"]["script"], content["archives"]["artifacts"]["paths"]


@pytest.mark.parametrize(("name", "read"), [(".github/workflows/archives.yml", github), (".gitlab-ci.yml", gitlab)])
def test_the_ci_files_are_valid_and_their_commands_build_verify_and_find_the_archives(
    installed: Installed, project: dict[str, Any], tmp_path: Path, name: str, read: Callable[[Any], Any]
) -> None:
    checked = [str(Path(sys.executable).with_name("check-jsonschema")), *SCHEMAS[name], str(installed.folder / name)]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(installed.folder, tmp_path / "clone", ignore=shutil.ignore_patterns(".marctl", "archives", "quiz"))
    install, *commands = read(yaml.safe_load((tmp_path / "clone" / name).read_text()))[0]
    [kept] = read(yaml.safe_load((tmp_path / "clone" / name).read_text()))[1]
    assert install == "pip install -r requirements.txt"
    installed.shell("\n".join(commands), tmp_path / "clone")
    assert {path.name for path in (tmp_path / "clone").glob(kept)} >= {"hello-1.0.mar"}
    (tmp_path / "clone" / "model_store" / "archives" / "broken-1.0.mar").write_bytes(b"no archive")
    with pytest.raises(AssertionError, match="broken"):
        installed.shell(commands[-1], tmp_path / "clone")


def test_requirements_install_the_same_wheel_elsewhere(
    installed: Installed, project: dict[str, Any], wheel: Path, tmp_path: Path
) -> None:
    assert f"wheels/{wheel.name}" in project["written"]
    command = [*PIP, "install", "-q", "--no-deps", "--no-index", "-t", str(tmp_path), "-r", "requirements.txt"]
    subprocess.run(command, cwd=installed.folder, check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)
    assert (tmp_path / "marctl" / "stack" / "settings" / "log4j2.xml").is_file()
