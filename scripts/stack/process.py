"""Processes by identity, not by bare pid; stopped with all that they started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

GRACE_S = 20.0
"""TorchServe takes about 4 seconds to stop: its HTTP library waits twice for 2 quiet seconds."""
CLOCK_TOLERANCE_S = 2.0
"""The kernel keeps start times since boot; as clock times they drift when the clock is set."""


def same_process(pid: int, created: float, mark: str) -> psutil.Process | None:
    """The process, if it runs, began at `created` and has `mark` in its command line."""
    try:
        process = psutil.Process(pid)
        if not is_alive(process) or abs(process.create_time() - created) > CLOCK_TOLERANCE_S:
            return None
        return process if has_mark(process.cmdline(), mark) else None
    except psutil.Error:
        return None


def processes_marked(mark: str) -> list[psutil.Process]:
    """Every process with `mark` in its command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if has_mark(p.info["cmdline"] or [], mark)]


def has_mark(words: Sequence[str], mark: str) -> bool:
    return any(mark in word for word in words)


def stop_tree(process: psutil.Process, grace_s: float = GRACE_S) -> None:
    """Ask the process to end, and after the grace period end it and its descendants. An interrupt ends the grace."""
    tree = [process, *descendants(process)]
    try:
        process.terminate()
        wait_gone(tree, grace_s)
    except psutil.NoSuchProcess:
        pass
    finally:
        kill(tree)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """End them now, and wait till they are gone."""
    for process in processes:
        if is_alive(process):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    wait_gone(processes, GRACE_S)


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Return when none is alive, or after the timeout."""
    deadline = time.monotonic() + timeout_s
    while any(is_alive(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: where no init process collects orphans, it would stay for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
