"""The state folder: what one stack keeps on disk.

history.jsonl       every revision of the declared state; head.json: its newest line
running.json        the stack that runs: addresses, folders, processes
status.json         what the reconciler observed: revision in force, versions, reasons, what it does now
trust.json          the folder of keys that must have signed every archive; only where that is required
follow.json         the place whose document this node follows, and what it saw there; only where it follows one
reconciler.lock     held, and named in it, by the process that reconciles
autoscaler.json     what the autoscaler saw last, and autoscaler.lock, held by it (scripts/stack/autoscaler.py)
config.properties   TorchServe's settings as they are in force
log/                drained predictions and labels, if no other folder was named
batch/              jobs of the batch service
spill/              records of workers that could not reach Redis, until they are drained
gateway/            Envoy's settings, routes and clusters as they are in force
redis/              Redis's settings, and its data between a stop and the next start
features/           the feature store's settings and its data
logs/               those of each part, which `marctl logs` merges (scripts/stack/log_lines.py)
tmp/                sockets and unpacked archives, from start to stop (elsewhere if this path is too long)

Only the reconciler writes, history.jsonl and the autoscaler's own aside.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from marctl.build.reader import described
from marctl.core.errors import UserError
from marctl.core.files import WriteFailed, write_atomically
from marctl.core.process import Identity
from marctl.core.sole import holder
from marctl.gateway.envoy import Envoy
from marctl.gateway.settings import GatewaySettings
from marctl.signing.trust import Trust
from marctl.stack.history import History
from marctl.stack.ports import Ports
from marctl.stack.report import Following, Status

PRIVATE = 0o600
"""Redis's URL may hold a password, the gateway's settings hold keys."""


class DamagedState(UserError):
    """A file of the state folder cannot be read."""


class Gateway(Struct, frozen=True):
    """A stack's Envoy. `address` is where this machine reaches it; its settings have a file of their own."""

    address: str
    admin: str
    process: Identity | None = None
    config: str | None = None
    """The operator's file, whose keys and certificate are followed."""

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.alive else None


class Redis(Struct, frozen=True):
    """Where the workers find Redis. `process` is our own one's; None for one that the environment names."""

    url: str
    process: Identity | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None


class Running(Struct, frozen=True):
    """One started stack. Written before its first process starts, so that what a kill leaves can be found."""

    ports: Ports
    inference: str
    management: str
    metrics: str
    store: str
    temp: str
    started_at: str
    server: Identity | None = None
    gateway: Gateway | None = None
    """None where TorchServe is served alone."""
    redis: Redis | None = None
    """None where there is none."""
    features: Redis | None = None
    """Where features stand; None where there is none."""
    batch: Identity | None = None
    """The batch service; its address is in the gateway's settings."""
    autoscaler: Identity | None = None

    @property
    def predictions(self) -> str:
        """Where clients ask."""
        return self.gateway.address if self.gateway else self.inference


class Requirement(Struct, frozen=True):
    """trust.json: archives must be signed by a key in this folder, or listed there."""

    keys: str


Content = TypeVar("Content", bound=Struct)


class State:
    """The files of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.history = History(self.folder)
        self.config = self.folder / "config.properties"
        self.logs = self.folder / "logs"
        self.server_log = self.logs / "server.log"
        self.workers_log = self.logs / "workers.log"
        self.console_log = self.logs / "console.log"
        self.reconciler_log = self.logs / "reconciler.log"
        self.reconciler_lock = self.folder / "reconciler.lock"
        self.autoscaler_lock = self.folder / "autoscaler.lock"
        self.autoscaler_report = self.folder / "autoscaler.json"
        self.prediction_log = self.folder / "log"
        self.spill = self.folder / "spill"
        self.batch = self.folder / "batch"
        self.gateway = self.folder / "gateway"
        self._running = self.folder / "running.json"
        self._status = self.folder / "status.json"
        self._following = self.folder / "follow.json"
        self._settings = self.gateway / "settings.json"
        self._trust = self.folder / "trust.json"

    def create(self) -> None:
        """The folder, invisible to git whatever the project's own ignore file says. Raises WriteFailed."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise WriteFailed(f"cannot make {self.logs}: {err.strerror}") from err
        ignore = self.folder / ".gitignore"
        if not ignore.exists():
            write_atomically(ignore, "*\n")

    def reconciler(self) -> Identity | None:
        """The process that reconciles this folder, None if there is none."""
        return holder(self.reconciler_lock)

    def running(self) -> Running | None:
        """What running.json says; its processes may have died since."""
        return read(self._running, Running)

    def save_running(self, running: Running) -> None:
        write(self._running, running)

    def forget_running(self) -> None:
        self._running.unlink(missing_ok=True)

    def status(self) -> Status:
        """The reconciler's last report; it may have died since."""
        return read(self._status, Status) or Status()

    def save_status(self, status: Status) -> None:
        write(self._status, status)

    def following(self) -> Following | None:
        """The place that this node follows, None where it follows none."""
        return read(self._following, Following)

    def save_following(self, following: Following) -> None:
        write(self._following, following)

    def forget_following(self) -> None:
        self._following.unlink(missing_ok=True)

    def trust(self) -> Trust | None:
        """Whose archives may be loaded, None for anybody's. Raises DamagedState, and then nothing may."""
        required = read(self._trust, Requirement)
        return Trust(Path(required.keys)) if required is not None else None

    def require_signed(self, keys: Path) -> None:
        """From now on, also after a stop, until `allow_unsigned`."""
        write(self._trust, Requirement(str(keys.resolve())))

    def allow_unsigned(self) -> None:
        self._trust.unlink(missing_ok=True)

    def gateway_settings(self) -> GatewaySettings:
        """What the gateway that runs was started with."""
        return read(self._settings, GatewaySettings) or GatewaySettings()

    def save_gateway_settings(self, settings: GatewaySettings) -> None:
        self.gateway.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(self._settings, settings)

    def envoy(self, ports: Ports, settings: GatewaySettings) -> Envoy:
        """This stack's gateway."""
        log = self.logs / "gateway.log"
        return Envoy(
            self.gateway, log, ports.torchserve, ports.gateway, ports.admin, settings, declared=self.declared_task
        )

    def declared_task(self, model: str, version: str) -> dict[str, Any]:
        """What a declared version's archive says of its task; empty where it says nothing, or cannot be read."""
        running = self.running()
        if running is None:
            return {}
        with suppress(UserError, KeyError):
            declared = self.history.current().document.models[model].versions[version]
            return described(Path(running.store) / declared.file, declared.archive)
        return {}


def read(path: Path, kind: type[Content]) -> Content | None:
    """None if the file is not there."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise DamagedState(f"{path}: {err}; `marctl up` finds what runs by itself and writes the file anew") from err


def write(path: Path, content: Struct) -> None:
    """Raises WriteFailed."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n", mode=PRIVATE)
