from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from marctl.core.process import (
    GRACE_S,
    LOG_BYTES,
    Identity,
    Program,
    StartFailed,
    find_processes,
    is_alive,
    processes_marked,
    rotate,
    stop_tree,
)

WAITS = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)])
    yield process
    process.kill()
    process.wait()


def program(folder: Path, code: str) -> Program:
    return Program("Child", [sys.executable, "-c", code, str(folder)], folder, dict(os.environ), folder / "log")


def test_a_process_is_known_by_its_start_in_the_kernels_ticks(child: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(child.pid)
    assert identity is not None
    assert identity.alive
    assert identity.process == psutil.Process(child.pid)
    assert not Identity(child.pid, identity.started + 1, identity.boot).alive
    assert not Identity(child.pid, identity.started, "another boot").alive


def test_setting_the_clock_makes_nobody_another_process(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil adds the boot time, which moves with the clock, to what the kernel says."""
    identity = Identity.of(child.pid)
    assert identity is not None
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 1.0)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert identity.alive


def test_a_zombie_counts_as_ended(child: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(child.pid)
    assert identity is not None
    process = psutil.Process(child.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)
    assert not identity.alive
    assert identity.process is None


def test_finds_processes_by_their_command_line(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert [p.pid for p in processes_marked(str(tmp_path))] == [child.pid]
    assert [p.pid for p in find_processes(lambda p: p.cmdline()[-1:] == [str(tmp_path)])] == [child.pid]


def test_a_program_is_started_once_it_is_ready(tmp_path: Path) -> None:
    identity = program(tmp_path, f"open({str(tmp_path / 'up')!r}, 'w'); {WAITS}").start(
        lambda pid: (tmp_path / "up").exists() and psutil.pid_exists(pid), 10
    )
    assert identity.alive
    assert identity.process is not None
    stop_tree(identity.process)
    assert not identity.alive


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('out of luck'); raise SystemExit(3)", "ended while starting, exit code 3"),
        (WAITS, "did not answer within"),
    ],
)
def test_a_program_that_does_not_come_up_leaves_nothing_and_its_last_words(
    tmp_path: Path, code: str, told: str
) -> None:
    with pytest.raises(StartFailed, match=rf"(?s)Child {told}.*, says the test") as caught:
        program(tmp_path, code).start(lambda _: False, 0.5, ", says the test")
    assert ("out of luck" in str(caught.value)) == ("luck" in code)
    assert not processes_marked(str(tmp_path))


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = Program("Child", [str(tmp_path / "none")], tmp_path, {}, tmp_path / "log")
    with pytest.raises(StartFailed, match=r"Child cannot be started: .*No such file"):
        missing.start(lambda _: True, 1)


def test_a_large_log_is_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(bytes(LOG_BYTES + 1))
    rotate(log)
    assert sorted(os.listdir(tmp_path)) == ["x.log.1"]


def test_what_ignores_the_request_to_stop_is_ended_with_its_children() -> None:
    nested = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])\n{STUBBORN}"
    with subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.stdout.readline()
        process = psutil.Process(parent.pid)
        children = process.children()
        stop_tree(process, grace_s=0.2)
        assert children
        assert not any(is_alive(p) for p in [process, *children])


def test_one_that_has_finished_is_ended_at_once_and_its_children_end_by_themselves(tmp_path: Path) -> None:
    """As TorchServe with nobody connected to it, whose workers still write down what they answered."""
    last = tmp_path / "last"
    child = f"import sys, time\nsys.stdin.read()\ntime.sleep(0.3)\nopen({str(last)!r}, 'w').close()"
    starts = f"subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE)"
    nested = f"import subprocess, sys\n{starts}\n{STUBBORN}"
    with subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        process = psutil.Process(parent.pid)
        began = time.monotonic()
        stop_tree(process, has_finished=lambda: is_alive(process))
        assert time.monotonic() - began < GRACE_S / 2
        assert last.exists()
