"""Shared workers: each holds many versions, and is registered with TorchServe like a version of its own.

Versions that were built with the same handler code are in one; those of another code, as after an upgrade, are in
another one, so that each goes on with the code that it was built with. A worker's archive is made here: that code and a
configuration. Which versions it may load stands in a list in its folder, by digest; nothing else is ever loaded.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from marctl.build.reader import MANIFEST, Archive
from marctl.core.archive_code import code_package
from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.core.shared import VERSION, address, shared_name
from marctl.stack.document import Pool
from marctl.stack.logs import Mark
from marctl.stack.management import Served
from marctl.stack.routing import Key
from marctl.stack.samples import ask_explanation, ask_samples
from marctl.stack.state import Running
from marctl.stack.store import DIGEST_LENGTH, EXPLAINS, UNPACKED, made, unpack, unpack_explainer
from marctl.stack.versions import LoadFailed, Server, wait_ready
from marctl_handlers.archive import CONFIG_FILE, METADATA_FILE, handlers_digest
from marctl_handlers.shared.members import MEMBERS_FILE, Member, read_members
from marctl_handlers.shared.report import Held, read_held

FOLDER = "shared"
ASKED_AT_ONCE = 4
"""Versions whose samples are asked side by side: each waits for its load."""
EXPLAINING = {"nice": 19, "turn_ms": 2000.0, "batch_ms": 10_000.0}
"""An explanation takes a thousand times as long as a prediction, and stands back at the processor."""
EXPLAIN_BATCH, EXPLAIN_QUEUE = 4, 64


@dataclass(frozen=True)
class SharedWorker:
    """One kind of shared workers: a handler code, a configuration."""

    name: str
    digest: str
    config: str
    """model-config.yaml."""
    pool: Pool
    explain: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.name, VERSION

    def folder(self, unpacked: Path) -> Path:
        return unpacked / self.digest / (FOLDER + UNPACKED)


def worker_of(archive: Archive, pool: Pool, *, explain: bool = False) -> SharedWorker:
    """Whose process a version belongs into. Raises LoadFailed for an archive that cannot share one."""
    code = handlers_digest(archive.metadata)
    if not code:
        raise LoadFailed(
            f"{archive.name} {archive.version} was not built by `marctl build`, so it cannot be in a shared worker; "
            "declare `workers: 1`"
        )
    config = yaml.safe_dump(server_config(pool, explain=explain), sort_keys=True)
    digest = hashlib.sha256(f"{code}\0{config}".encode()).hexdigest()[:DIGEST_LENGTH]
    return SharedWorker(shared_name(digest, explain=explain), digest, config, pool, explain)


def server_config(pool: Pool, *, explain: bool) -> dict[str, Any]:
    """model-config.yaml: TorchServe's own keys, and what handlers/shared/settings.py reads."""
    names = ("memory_mb", "cold_wait_ms", "load_seconds", "turn_ms", "batch_ms")
    shared: dict[str, Any] = {name: getattr(pool, name) for name in names}
    return {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": EXPLAIN_BATCH if explain else pool.batch_size,
        "maxBatchDelay": pool.max_delay_ms,
        "jobQueueSize": EXPLAIN_QUEUE if explain else pool.queue_size,
        "responseTimeout": pool.response_timeout_s,
        "startupTimeout": 180,
        "deviceType": "cpu",
        "shared": shared | (EXPLAINING if explain else {}),
    }


def unpack_member(archive: Archive, unpacked: Path, *, explain: bool) -> Member:
    """The archive's content, and how the list names it. Raises UserError."""
    folder = (unpack_explainer if explain else unpack)(archive, unpacked)
    task = archive.metadata.get("task", "")
    return Member(archive.name, archive.version, archive.sha256, str(folder), str(task))


def make_archive(worker: SharedWorker, unpacked: Path, source: Path) -> Path:
    """The worker's own archive, as a folder, with the handler code of one of its members. Raises UserError."""
    target = worker.folder(unpacked)
    if target.is_dir():
        return target
    with made(target, f"cannot lay out {worker.name} in {unpacked}") as partial:
        package = code_package(source)
        shutil.copytree(source / package, partial / package)
        shutil.copyfile(source / package / "entry.py", partial / "entry.py")
        metadata = msgspec.json.decode((source / METADATA_FILE).read_bytes())
        code = {path: digest for path, digest in metadata["files"].items() if path.startswith(f"{package}/")}
        model = {"modelName": worker.name, "modelVersion": VERSION, "handler": "entry.py", "configFile": CONFIG_FILE}
        manifest = {"runtime": "python", "model": model, "archiverVersion": "0.12.0"}
        (partial / CONFIG_FILE).write_text(worker.config)
        (partial / METADATA_FILE).write_bytes(msgspec.json.encode({"files": code}))
        (partial / MANIFEST).parent.mkdir()
        (partial / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        (partial / MEMBERS_FILE).write_bytes(b"[]")
    return target


def write_members(folder: Path, members: Iterable[Member]) -> None:
    """The list, which the workers notice with their next batch. Raises WriteFailed."""
    write_atomically(folder / MEMBERS_FILE, msgspec.json.encode(list(members)) + b"\n", mode=0o600)


def begin(server: Server, worker: SharedWorker, source: Path, logs: Mark) -> Served:
    """Register a shared worker that is not there, and wait for its processes. Raises LoadFailed."""
    workers = worker.pool.workers
    folder = server.run(lambda: make_archive(worker, server.unpacked, source))
    server.notify(f"{worker.name}: starting, {workers} process{'es' if workers > 1 else ''} for shared versions")
    server.management.register(folder, worker.name)
    if workers != 1:
        server.management.scale(*worker.key, workers)
    return wait_ready(server, *worker.key, logs)


def nobody(worker: SharedWorker) -> Served:
    """A shared worker before it is there."""
    return Served(*worker.key, FOLDER, worker.digest, 1, (), 0, 0, 0, 0, 0, 0)


def unpacked_in(running: Running) -> Path:
    """Where a stack's archives lie unpacked."""
    return Path(running.temp) / "archives"


def folder_of(served: Served, unpacked: Path) -> Path:
    """Where a registered shared worker's archive lies."""
    return unpacked / served.digest / (served.archive + UNPACKED)


def as_member(worker: Served, key: Key, member: Member) -> Served:
    """A version as TorchServe would describe it, with the shared worker's processes and queue.

    `key`: under which it would be registered.
    """
    folder = Path(member.folder)
    archive = folder.name.removesuffix(UNPACKED).removesuffix(EXPLAINS)
    return replace(worker, model=key[0], version=key[1], digest=folder.parent.name, archive=archive)


def members_in(served: Served, unpacked: Path) -> list[Member]:
    """The list of a shared worker that runs; empty for one that is damaged."""
    with suppress(OSError, msgspec.DecodeError):
        return read_members(folder_of(served, unpacked) / MEMBERS_FILE)
    return []


def prove(server: Server, worker: Served, archives: Sequence[Archive], *, explain: bool) -> list[UserError | None]:
    """Ask versions their samples, for each of which it is loaded; why it failed, or None."""

    def ask(archive: Archive) -> UserError | None:
        at = address(worker.model, archive.name, archive.version)
        try:
            if explain:
                ask_explanation(server.inference, archive, worker.model, worker.response_timeout_s, at)
            else:
                ask_samples(server.inference, archive, worker.response_timeout_s, at)
        except UserError as err:
            return err
        return None

    pool = ThreadPoolExecutor(ASKED_AT_ONCE)
    try:
        return server.run(lambda: list(pool.map(ask, archives)))
    finally:  # whoever stops the stack meanwhile does not wait for the rest
        pool.shutdown(wait=False, cancel_futures=True)


def held_by(served: Served, unpacked: Path) -> list[Held]:
    """What each living process of a shared worker holds."""
    return [held for held in read_held(folder_of(served, unpacked)) if held.pid in served.pids]
