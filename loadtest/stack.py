"""A stack for one measurement: `marctl up` on free ports in a state folder of its own, and what its processes cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

PROJECT = Path(__file__).parents[1]
RECIPES = PROJECT / "model_store"
ARCHIVES = RECIPES / "archives"
FREE_PORTS = [f"--{name}" for name in ("gateway-port=0", "port=0", "management-port=0", "metrics-port=0")]
MARCTL = [sys.executable, "-c", "from marctl.cli import main; main(prog_name='marctl')"]
READY_TIMEOUT_S = 120.0


class CommandFailed(RuntimeError):
    """A marctl command ended with an error; the text is its own."""


@dataclass
class Stack:
    """A running stack."""

    state: Path
    status: dict[str, Any]

    @property
    def gateway(self) -> str:
        return str(self.status["gateway"])

    @property
    def torchserve(self) -> str:
        return str(self.status["inference"])

    def marctl(self, *arguments: str) -> Any:
        """A command's JSON result; raises CommandFailed."""
        return marctl(self.state, *arguments)

    def pids(self) -> dict[str, list[int]]:
        """`envoy`, `java`, `redis` and `features` if they are the stack's own, and workers by version (`mcqa 1.0`)."""
        status = self.marctl("status")
        workers = {f"{row['model']} {row['version']}": row["pids"] for row in status["versions"]}
        redis = {name: [status[f"{name}_pid"]] for name in ("redis", "features") if status[f"{name}_pid"]}
        return {"envoy": [status["gateway_pid"]], "java": [status["pid"]], **redis, **workers}

    def kill_worker(self, name: str) -> None:
        """SIGKILL the worker of a version, such as `mcqa 1.0`, and wait until another has taken its place."""
        [old] = self.pids()[name]
        os.kill(old, signal.SIGKILL)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not any(row["workers_ready"] and old not in row["pids"] for row in self.rows(name)):
            if time.monotonic() > deadline:
                raise CommandFailed(f"the worker of {name} is not back after {READY_TIMEOUT_S:.0f} s")
            time.sleep(0.5)

    def wait_for_all_workers(self) -> None:
        """Predictions are served while explainers still load, which takes what a measurement is about."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while any(
            row.get("workers_ready", 0) < row.get("workers_asked", 0) for row in self.marctl("status")["versions"]
        ):
            if time.monotonic() > deadline:
                raise CommandFailed(f"not all workers are ready after {READY_TIMEOUT_S:.0f} s")
            time.sleep(0.5)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A version's row of the status."""
        return [row for row in self.marctl("status")["versions"] if f"{row['model']} {row['version']}" == name]


class CpuMeter:
    """Processor seconds that processes have used since it was made. A process that ends keeps what was last seen."""

    def __init__(self, pids: dict[str, list[int]]) -> None:
        self._processes = {name: [psutil.Process(pid) for pid in group] for name, group in pids.items()}
        self._seen = {process: cpu_seconds(process) for group in self._processes.values() for process in group}
        self._before = self._sums()

    def add(self, name: str, pid: int) -> None:
        """Count one more process, from its start on; one that has ended already counts nothing."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            self._processes[name], self._seen[process], self._before[name] = [process], 0.0, 0.0

    def used(self) -> dict[str, float]:
        for process in self._seen:
            with suppress(psutil.Error):
                self._seen[process] = cpu_seconds(process)
        return {name: seconds - self._before[name] for name, seconds in self._sums().items()}

    def _sums(self) -> dict[str, float]:
        return {name: sum(self._seen[process] for process in group) for name, group in self._processes.items()}


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def marctl(state: Path, *arguments: str) -> Any:
    command = [*MARCTL, *arguments, "--state", str(state), "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"marctl {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


@contextmanager
def running_stack(
    versions: Sequence[str],
    *options: str,
    copies: Mapping[str, str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    source: Path = RECIPES,
) -> Iterator[Stack]:
    """Serve versions of the repository, such as `mcqa/1.0`, and nothing else; all of it is stopped at the end.

    `source`: the folder of their recipes, if not the repository's.

    `copies`: further versions, each the same model as one of the repository: `{"mcqa/1.1": "mcqa/1.0"}`. `recipe`:
    what to change in all their recipes; sections are merged. Raises CommandFailed.
    """
    for version in [*versions, *(copies or {}).values()]:
        if not (source / version / "model.yaml").is_file():
            known = ", ".join(sorted(f"{p.parent.parent.name}/{p.parent.name}" for p in source.glob("*/*/model.yaml")))
            raise CommandFailed(f"there is no version {version}; expected one of {known}")
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        recipes, state, store = (Path(folder) / name for name in ("recipes", "state", "store"))
        for version, original in {**{version: version for version in versions}, **(copies or {})}.items():
            shutil.copytree(source / original, recipes / version)
            change_recipe(recipes / version / "model.yaml", recipe or {})
        store.mkdir()
        for archive in ARCHIVES.glob("*.mar"):
            (store / archive.name).symlink_to(archive)  # what is current need not be built
        try:
            where = ["--recipes", str(recipes), "--store", str(store)]
            stack = Stack(state, marctl(state, "up", *where, *FREE_PORTS, "--detach", *options))
            stack.wait_for_all_workers()
            yield stack
        finally:
            subprocess.run([*MARCTL, "down", "--state", str(state)], cwd=PROJECT, capture_output=True, check=False)


def change_recipe(path: Path, changes: Mapping[str, Any]) -> None:
    """Merge `changes` into a recipe, a section key by key; without any, the file stays as it is."""
    if not changes:
        return
    content = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        content[key] = content.get(key, {}) | value if isinstance(value, Mapping) else value
    path.write_text(yaml.safe_dump(content))
