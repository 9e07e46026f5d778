"""Processes that threads of this one wait for, and that end with it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock


class Ended(Exception):
    """No process is started any more."""


class Children:
    """Runs commands as `subprocess.run` does; whoever waits for several threads can end them all."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(
        self, command: Sequence[str], *, folder: Path, env: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Its output as text, whatever its exit code. Raises subprocess.TimeoutExpired, and Ended after `end`."""
        with self._lock:
            if self._ended:
                raise Ended
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=pipe, stderr=pipe)
            self._running.add(process)
        with process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def end(self) -> None:
        """Now and for good."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()
