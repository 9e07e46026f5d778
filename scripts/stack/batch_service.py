"""The stack's batch service: a process that takes jobs, started where `marctl up` names a configuration for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import requests
from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.extras import install
from marctl.core.http import HOST, local_session
from marctl.core.process import Identity, Program, find_processes, stop_tree
from marctl.stack.state import State

MODULE = "marctl.batch.service"
START_TIMEOUT_S = 60.0


class BatchService(Struct, frozen=True):
    """Where it listens, and what it was started with."""

    config: str
    store: str
    port: int

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self, state: State) -> Identity:
        """Raises UserError, StartFailed."""
        from marctl.batch.service.settings import read_settings  # which brings pyarrow

        read_settings(Path(self.config))
        refuse_without_ray()
        arguments = [self.config, str(state.batch), str(state.folder), self.store, str(self.port)]
        program = Program(
            name="the batch service",
            command=[sys.executable, "-m", MODULE, *arguments],
            folder=state.folder,
            environ=os.environ,
            log=state.logs / "batch.log",
        )
        return program.start(lambda _: self._answers(), START_TIMEOUT_S)

    def _answers(self) -> bool:
        try:
            return local_session().get(f"http://{self.address}/v1/batch", timeout=1).ok
        except requests.RequestException:
            return False


def refuse_without_ray() -> None:
    """Raise UserError naming the extra that brings what is not here."""
    import importlib.util

    lacking = [name for name in ("ray", "pandas", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"batch jobs need {', '.join(lacking)}, which is not here: {install('batch')}")


def find(state: State) -> list[psutil.Process]:
    """The service of a state folder, and its jobs that outlived it."""
    folder = str(state.batch)
    return find_processes(lambda process: belongs(process.cmdline(), folder))


def belongs(words: list[str], folder: str) -> bool:
    return (MODULE in words and folder in words) or any(word.startswith(f"--progress={folder}/") for word in words)


def stop(state: State) -> bool:
    """Whether there was one. Jobs end in order, and go on when the service is started again."""
    found = find(state)
    for process in sorted(found, key=lambda each: MODULE not in each.cmdline()):
        stop_tree(process, grace_s=40.0)
    return bool(found)
