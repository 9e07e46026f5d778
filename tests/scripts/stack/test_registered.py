from __future__ import annotations

import os
import subprocess
import sys

from marctl.stack.management import Served, Worker
from marctl.stack.registered import Found


def served(*pids: int) -> Served:
    """As TorchServe tells it: every worker READY."""
    workers = tuple(Worker(str(9000 + i), pid, True, "") for i, pid in enumerate(pids))
    return Served("quiz", "1.0", "quiz-1.0.mar", "d" * 12, len(pids), workers, 32, 2, 60, 60, 0, 1000)


def test_a_version_is_well_while_its_workers_run() -> None:
    assert Found.of(served(os.getpid(), os.getppid())).well
    assert Found.of(served()).well, "none is asked for"


def test_a_dead_worker_that_torchserve_still_calls_ready_is_missed() -> None:
    """It would never be looked at again, and the gateway would send nothing to the worker that takes its place."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    found = Found.of(served(dead.pid))
    assert not found.well
    assert not found.manned
    found.see(served(os.getpid()))
    assert found.well
