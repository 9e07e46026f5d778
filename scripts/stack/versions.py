"""Loads, scales and unloads versions on a running TorchServe, each step checked before the next one.

Whatever takes time is waited for through `Server.pause` and `Server.wait`, so that the reconciler can watch its
processes meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from marctl.build.reader import Archive
from marctl.core.errors import UserError
from marctl.core.explainers import explainer_of, is_explainer
from marctl.stack.logs import Mark, mark
from marctl.stack.management import Management, NoSuchVersion, Served
from marctl.stack.samples import ask_explanation, ask_samples
from marctl.stack.store import forget_unpacked, unpack, unpack_explainer

POLL_S = 0.1
LOG_LAG_S = 1.0
"""A worker's last words reach the log through a pipe and another process; they may come after the news of its end."""
MARGIN_S = 60.0
"""On top of a version's own startupTimeout: unpacking is done, but Python and its libraries must start first."""
NOTE_EVERY_S = 10.0
"""How often a version that takes long to load is told of."""
DRAIN_S = 0.3
IDLE_S = 0.02
"""Of processor time per DRAIN_S; the kernel counts in hundredths of a second."""
SILENT_ENDS = 1
"""How often a worker may end without a word while it loads: somebody may have killed it. TorchServe starts another."""

Notify = Callable[[str], None]
Result = TypeVar("Result")


class LoadFailed(UserError):
    """A version's worker does not start; the text says why."""


@dataclass(frozen=True)
class Server:
    """A running TorchServe, with the means to wait."""

    management: Management
    inference: str
    unpacked: Path
    server_log: Path
    workers_log: Path
    notify: Notify
    pause: Callable[[float], None]
    """Sleeps, and raises when there is no sense in waiting any more."""
    wait: Callable[[Callable[[], object]], object]
    """Calls a function that blocks, and pauses until it returns."""

    def mark(self) -> Mark:
        return mark(self.server_log, self.workers_log)

    def run(self, function: Callable[[], Result]) -> Result:
        """`wait`, with the function's own type."""
        result: Result = self.wait(function)  # type: ignore[assignment]  # a dataclass field cannot be generic
        return result

    def served(self, model: str, version: str) -> Served | None:
        try:
            return self.management.describe(model, version)
        except NoSuchVersion:
            return None


def begin(server: Server, archive: Archive, workers: int, *, explain: bool = False) -> None:
    """Unpack and register an archive, to predict or to explain, and go on; its workers start meanwhile."""
    folder = server.run(lambda: (unpack_explainer if explain else unpack)(archive, server.unpacked))
    name = explainer_of(archive.name) if explain else archive.name
    server.management.register(folder, name)
    if server.management.describe(name, archive.version).asked != workers:
        server.management.scale(name, archive.version, workers)


def prove(server: Server, archive: Archive, logs: Mark, *, explain: bool = False) -> Served:
    """Wait for the workers of a registered version and ask its samples. Raises LoadFailed or SampleFailed."""
    name = explainer_of(archive.name) if explain else archive.name
    served = wait_ready(server, name, archive.version, logs)
    samples = "no samples to ask"
    if served.ready and explain:
        server.run(lambda: ask_explanation(server.inference, archive, name, served.response_timeout_s))
        samples = "a sample explained"
    elif served.ready:
        asked = server.run(lambda: ask_samples(server.inference, archive, served.response_timeout_s))
        samples = f"{asked} sample answers as expected" if asked else samples
    if not archive.metadata:
        samples += "; it was not built by marctl, so its answers are neither cached nor logged"
    server.notify(
        f"{served}: ready after {logs.elapsed_s():.1f} s, {served.ready} of {served.asked} workers, {samples}"
    )
    return served


def wait_ready(server: Server, model: str, version: str, logs: Mark) -> Served:
    """Until as many workers are ready as were asked for; raises LoadFailed as soon as one ends and says why."""
    pids: set[int] = set()
    ended: set[int] = set()
    deadline = 0.0
    next_note_s = logs.elapsed_s() + NOTE_EVERY_S
    while True:
        served = server.management.describe(model, version)
        deadline = deadline or time.monotonic() + served.startup_timeout_s + MARGIN_S
        if served.ready >= served.asked:
            return served
        pids |= set(served.pids)
        ended |= {pid for pid in pids if not psutil.pid_exists(pid)}
        if ended or logs.failed(served.worker_ids):
            reason = explain_end(server, served, logs)
            if reason or len(ended) > SILENT_ENDS:
                words = reason or "its worker ended without an error message"
                raise LoadFailed(f"{served} did not load: {words}\n(its workers' log: {server.workers_log})")
        if time.monotonic() > deadline:
            raise LoadFailed(
                f"{served} has {served.ready} of {served.asked} workers after {logs.elapsed_s():.0f} s, its "
                f"startupTimeout is {served.startup_timeout_s} s\n(its workers' log: {server.workers_log})"
            )
        if logs.elapsed_s() > next_note_s:
            next_note_s += NOTE_EVERY_S
            workers = f"{served.ready} of {served.asked} workers are ready"
            server.notify(f"{served}: still loading after {logs.elapsed_s():.0f} s; {workers}")
        server.pause(POLL_S)


def explain_end(server: Server, served: Served, logs: Mark) -> str:
    """Why a worker ended, in its own words; empty if it said nothing."""
    deadline = time.monotonic() + LOG_LAG_S
    while time.monotonic() < deadline:
        if reason := logs.reason(served.worker_ids):
            return reason.removeprefix(f"{served}: ")
        server.pause(POLL_S)
    return ""


def scale(server: Server, model: str, version: str, workers: int) -> Served:
    """Bring a version to so many workers, and wait for them. Raises LoadFailed."""
    logs = server.mark()
    server.notify(f"{model} {version}: scaling to {workers}")
    server.management.scale(model, version, workers)
    return wait_ready(server, model, version, logs)


def remove(server: Server, served: Served) -> None:
    """Unregister a version that nobody asks any more; its archive stays in the store.

    TorchServe lets a default version go only as the last one, so another one becomes the default. Whoever asks through
    the gateway never meets it, for requests name their version there.
    """
    management = server.management
    others = [other.version for other in management.versions(served.model) if other.version != served.version]
    if others and management.default_version(served.model) == served.version:
        management.set_default(served.model, others[0])
    management.unregister(served.model, served.version)
    if not is_explainer(served.model):
        forget_unpacked(server.unpacked, served.digest, served.archive)


def drain(server: Server, served: Served) -> None:
    """Wait till its queue is empty and its workers are idle, but no longer than one request may take.

    TorchServe does not tell whether a worker is at a batch; one that uses no processor time is taken for idle.
    """
    deadline = time.monotonic() + served.response_timeout_s
    used_s = -1.0
    while time.monotonic() < deadline:
        now = server.served(served.model, served.version)
        if now is None:
            return
        before_s, used_s = used_s, sum(processor_s(worker.pid) for worker in now.workers)
        if now.queue == 0 and 0 <= used_s - before_s <= IDLE_S and before_s >= 0:
            return
        server.pause(DRAIN_S)


def processor_s(pid: int) -> float:
    """Processor time used so far; 0 for a process that is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, ValueError):
        return 0.0
    return float(times.user + times.system)
