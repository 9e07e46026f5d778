from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.stack.process import is_alive, processes_marked, same_process, stop_tree

WAITS = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_pid_start_time_and_command_line(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    created = psutil.Process(child.pid).create_time()
    assert same_process(child.pid, created, str(tmp_path))
    assert not same_process(child.pid, created - 60, str(tmp_path))
    assert not same_process(child.pid, created, "/another/state")


def test_a_zombie_counts_as_ended(child: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(child.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)


def test_finds_processes_by_a_word_of_their_command_line(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert [p.pid for p in processes_marked(str(tmp_path))] == [child.pid]


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
