"""A process that computes gives signs of life; one that is stopped gives none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marctl_handlers.torchserve.heartbeat import EVERY_S, heartbeat_file

PATIENCE_S = 30.0
WORKER = """
import torch
from marctl_handlers.torchserve.heartbeat import begin_heartbeat

begin_heartbeat()
print("begun", flush=True)
square = torch.rand(400, 400)
while True:
    square = (square @ square) / 200
    sum(i for i in range(100_000))
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that computes without a pause, in Python and in torch; its temporary folder is the test's."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


def beats_later_than(file: Path, moment: float, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if file.stat().st_mtime > moment:
            return True
        time.sleep(0.02)
    return False


def test_it_beats_while_the_process_computes_and_stops_with_it(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    file = heartbeat_file(tmp_path, worker.pid)
    for _ in range(3):
        assert beats_later_than(file, time.time(), PATIENCE_S)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(0.1)  # until the signal has arrived
    assert not beats_later_than(file, time.time(), 4 * EVERY_S)
    worker.send_signal(signal.SIGCONT)
    assert beats_later_than(file, time.time(), PATIENCE_S)


def test_a_worker_without_a_place_for_it_works_on(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").write_text("a file where the folder should be")
    program = "from marctl_handlers.torchserve.heartbeat import begin_heartbeat; begin_heartbeat(); print('on')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "on\n"
    assert "no heartbeat" in done.stderr
