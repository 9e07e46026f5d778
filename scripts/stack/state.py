"""The state folder: what one stack keeps on disk.

config.properties   TorchServe's settings as they are in force
running.json        the running server, from start to stop
choices.json        what operators chose; the next start respects it
traffic.yaml        the models' traffic policies; traffic.jsonl tells every change of them
log/                drained predictions and labels, if no other folder was named
gateway/               Envoy's settings, routes and clusters as they are in force
redis/              Redis's settings, and its data between a stop and the next start
logs/               server.log, workers.log, console.log, gateway.log, redis.log
tmp/                sockets and unpacked archives, from start to stop (elsewhere if this path is too long)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from scripts.core.errors import UserError
from scripts.gateway.settings import GatewaySettings

DEFAULT_STATE = Path(".marctl")


class DamagedState(UserError):
    """A file of the state folder cannot be read."""


class Busy(UserError):
    """Another command is changing this stack."""


class Gateway(msgspec.Struct, frozen=True):
    """A started Envoy. `address` is where this machine reaches it."""

    pid: int
    created: float
    address: str
    admin: str
    settings: GatewaySettings


class Redis(msgspec.Struct, frozen=True):
    """Where the workers find Redis. `pid` and `created` are those of our own one; None for one that REDIS_URL names."""

    url: str
    pid: int | None = None
    created: float | None = None


class Running(msgspec.Struct, frozen=True):
    """One started server. `created` is the process's start time as the kernel gives it: a pid alone may be reused."""

    pid: int
    created: float
    inference: str
    management: str
    metrics: str
    store: str
    temp: str
    started_at: str
    stopping: bool = False
    gateway: Gateway | None = None
    """None where TorchServe is served alone."""
    redis: Redis | None = None
    """None where there is none."""
    torchserve_metrics: str = ""
    """TorchServe's own page of figures, which is a part of the one at `metrics`."""

    @property
    def predictions(self) -> str:
        """Where clients ask."""
        return self.gateway.address if self.gateway else self.inference


class Choices(msgspec.Struct):
    """What operators chose, on top of what the recipes say. Versions are written `model/version`."""

    defaults: dict[str, str] = {}
    """Model to default version."""
    workers: dict[str, int] = {}
    """Version to worker count."""
    extra: list[str] = []
    """File names, in the store, of archives that no recipe builds."""
    left_out: list[str] = []
    """Versions that are not served."""


Content = TypeVar("Content", Running, Choices)


class State:
    """The files of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.config = self.folder / "config.properties"
        self.logs = self.folder / "logs"
        self.server_log = self.logs / "server.log"
        self.workers_log = self.logs / "workers.log"
        self.console_log = self.logs / "console.log"
        self.traffic = self.folder / "traffic.yaml"
        self.traffic_history = self.folder / "traffic.jsonl"
        self.prediction_log = self.folder / "log"
        self._running = self.folder / "running.json"
        self._choices = self.folder / "choices.json"

    def create(self) -> None:
        """The folder, invisible to git whatever the project's own ignore file says."""
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")

    def running(self) -> Running | None:
        """What running.json says; the server may have died since."""
        return read(self._running, Running)

    def save_running(self, running: Running) -> None:
        write(self._running, running)

    def forget_running(self) -> None:
        self._running.unlink(missing_ok=True)

    def choices(self) -> Choices:
        return read(self._choices, Choices) or Choices()

    @contextmanager
    def choosing(self) -> Iterator[Choices]:
        """The choices, to change; saved at the end of the block unless it raises."""
        choices = self.choices()
        yield choices
        write(self._choices, choices)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time may change this stack; raises Busy if another one is at it."""
        self.create()
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise Busy(
                    f"another marctl command is changing the stack in {self.folder}; try again after it"
                ) from err
            yield


def read(path: Path, kind: type[Content]) -> Content | None:
    """None if the file is not there."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as err:
        raise DamagedState(f"{path}: {err}; mend it or remove it") from err


def write(path: Path, content: Running | Choices) -> None:
    """Readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)  # the gateway's settings may hold keys, Redis's URL a password
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    os.replace(partial, path)
