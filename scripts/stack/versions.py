"""Loads, scales, promotes and unloads versions on a running server; every step is checked before the next one.

Notes for operators go to `notify`, one line each.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.build.reader import Archive
from scripts.core.errors import UserError
from scripts.core.explainers import explainer_of, is_explainer
from scripts.stack.logs import Mark, mark
from scripts.stack.management import Management, NoSuchVersion, Served
from scripts.stack.samples import ask_explanation, ask_samples
from scripts.stack.state import Running, State
from scripts.stack.store import EXPLAINS, UNPACKED, unpack, unpack_explainer
from scripts.stack.torchserve import find, running_server

POLL_S = 0.2
LOG_LAG_S = 1.0
"""A worker's last words reach the log through a pipe and another process; they may come after the news of its end."""
MARGIN_S = 60.0
"""On top of a version's own startupTimeout: unpacking is done, but Python and its libraries must start first."""
DRAIN_S = 0.3
IDLE_S = 0.02
"""Of processor time per DRAIN_S; the kernel counts in hundredths of a second."""

Notify = Callable[[str], None]


class LoadFailed(UserError):
    """A version's worker does not start; the text says why."""


class NotReady(UserError):
    """A version cannot take the place that it was meant to take."""


@dataclass(frozen=True)
class Stack:
    """A running server and the state folder it belongs to."""

    state: State
    running: Running
    management: Management

    @classmethod
    def of(cls, state: State, running: Running) -> Stack:
        return cls(state, running, Management(running.management))

    @classmethod
    def open(cls, state: State) -> Stack:
        """The stack that is up; raises NotRunning."""
        return cls.of(state, running_server(state))

    @property
    def unpacked(self) -> Path:
        """Where archives are served from; gone with the server."""
        return Path(self.running.temp) / "archives"

    def mark(self) -> Mark:
        return mark(self.state.server_log, self.state.workers_log)

    def served(self, model: str, version: str) -> Served | None:
        try:
            return self.management.describe(model, version)
        except NoSuchVersion:
            return None

    def is_default(self, model: str, version: str) -> bool:
        return not is_explainer(model) and self.management.default_version(model) == version


def load(stack: Stack, archive: Archive, workers: int | None, notify: Notify) -> Served:
    """Register an archive of the store, wait for its workers and ask its samples; on any failure it is gone again."""
    logs = stack.mark()
    notify(f"{archive.name} {archive.version}: loading")
    begin_load(stack, archive, workers)
    try:
        served = finish_load(stack, archive, logs, notify)
        if archive.explains:
            begin_explainer(stack, archive, None)
            finish_explainer(stack, archive, logs, notify)
    except BaseException:
        unload(stack, archive.name, archive.version)
        raise
    return served


def begin_load(stack: Stack, archive: Archive, workers: int | None) -> None:
    """Register and go on; its workers start meanwhile."""
    stack.management.register(unpack(archive, stack.unpacked))
    if workers is not None and stack.management.describe(archive.name, archive.version).asked != workers:
        stack.management.scale(archive.name, archive.version, workers)


def finish_load(stack: Stack, archive: Archive, logs: Mark, notify: Notify) -> Served:
    """Wait for the workers of a version that began to load, and ask its samples. Raises LoadFailed or SampleFailed."""
    served = wait_ready(stack, archive.name, archive.version, logs)
    asked = ask_samples(stack.running.inference, archive, served.response_timeout_s) if served.ready else 0
    samples = f"{asked} sample answers as expected" if asked else "no samples to ask"
    if not archive.metadata:
        samples += "; it was not built by marctl, so its answers are neither cached nor logged"
    notify(f"{served}: ready after {logs.elapsed_s():.1f} s, {served.ready} of {served.asked} workers, {samples}")
    return served


def begin_explainer(stack: Stack, archive: Archive, workers: int | None) -> None:
    """Register the workers that explain and go on. The archive must be unpacked: its version begins to load first."""
    explainer = explainer_of(archive.name)
    stack.management.register(unpack_explainer(archive, stack.unpacked), explainer)
    if workers is not None and stack.management.describe(explainer, archive.version).asked != workers:
        stack.management.scale(explainer, archive.version, workers)


def finish_explainer(stack: Stack, archive: Archive, logs: Mark, notify: Notify) -> Served:
    """Wait for the workers that explain, and have them explain a sample. Raises LoadFailed or SampleFailed."""
    served = wait_ready(stack, explainer_of(archive.name), archive.version, logs)
    if served.ready:
        ask_explanation(stack.running.inference, archive, served.model, served.response_timeout_s)
    notify(f"{served}: ready after {logs.elapsed_s():.1f} s, {served.ready} of {served.asked} workers")
    return served


def unload(stack: Stack, model: str, version: str) -> None:
    """Take a version back that did not make it; it may never have been registered."""
    if find(stack.state, stack.running) is not None and (served := stack.served(model, version)):
        remove(stack, served)


def remove(stack: Stack, served: Served) -> None:
    """Its workers that explain first, if it has any."""
    if explainer := stack.served(explainer_of(served.model), served.version):
        remove_explainer(stack, explainer)
    stack.management.unregister(served.model, served.version)
    shutil.rmtree(stack.unpacked / (served.archive + UNPACKED), ignore_errors=True)


def remove_explainer(stack: Stack, explainer: Served) -> None:
    """TorchServe lets a default version go only as the last one; which one is the default means nothing here."""
    others = [
        other.version for other in stack.management.versions(explainer.model) if other.version != explainer.version
    ]
    if others and stack.management.default_version(explainer.model) == explainer.version:
        stack.management.set_default(explainer.model, others[0])
    stack.management.unregister(explainer.model, explainer.version)
    shutil.rmtree(stack.unpacked / (explainer.archive + EXPLAINS + UNPACKED), ignore_errors=True)


def wait_ready(stack: Stack, model: str, version: str, logs: Mark) -> Served:
    """Until as many workers are ready as were asked for; raises LoadFailed as soon as one of them ends."""
    pids: set[int] = set()
    deadline = 0.0
    while True:
        served = stack.management.describe(model, version)
        deadline = deadline or time.monotonic() + served.startup_timeout_s + MARGIN_S
        if served.ready >= served.asked:
            return served
        pids |= {worker.pid for worker in served.workers if worker.pid > 0}
        if logs.failed(served.worker_ids) or not all(map(psutil.pid_exists, pids)):
            raise LoadFailed(f"{served} did not load: {explain(stack, served, logs)}")
        if time.monotonic() > deadline:
            raise LoadFailed(
                f"{served} has {served.ready} of {served.asked} workers after {logs.elapsed_s():.0f} s, its "
                f"startupTimeout is {served.startup_timeout_s} s\n(its workers' log: {stack.state.workers_log})"
            )
        time.sleep(POLL_S)


def explain(stack: Stack, served: Served, logs: Mark) -> str:
    """Why a worker ended: its own words, or where to look."""
    deadline = time.monotonic() + LOG_LAG_S
    while True:
        reason = logs.reason(served.worker_ids)
        if reason is not None:
            return f"{reason.removeprefix(f'{served}: ')}\n(its workers' log: {stack.state.workers_log})"
        if time.monotonic() > deadline:
            return f"its worker ended without an error message\n(its workers' log: {stack.state.workers_log})"
        time.sleep(POLL_S)


def promote(stack: Stack, archive: Archive) -> None:
    """Make a version the default, once all its workers are ready and it answers its samples."""
    served = stack.management.describe(archive.name, archive.version)
    if served.ready < max(served.asked, 1):
        raise NotReady(
            f"{served} has {served.ready} of {served.asked} workers ready; the default stays "
            f"{stack.management.default_version(archive.name)}. Start workers: marctl scale {served} 1"
        )
    ask_samples(stack.running.inference, archive, served.response_timeout_s)
    stack.management.set_default(archive.name, archive.version)


def scale(stack: Stack, model: str, version: str, workers: int) -> Served:
    """Bring a version to so many workers, and wait for them. None at all is for a version that nobody asks.

    If one does not start, the version goes back to the count it had.
    """
    before = stack.management.describe(model, version)
    if workers == 0 and stack.is_default(model, version):
        raise NotReady(
            f"{before} is the default version of {model} and must keep a worker; "
            f"first make another one the default: marctl default {model} VERSION"
        )
    logs = stack.mark()
    stack.management.scale(model, version, workers)
    try:
        return wait_ready(stack, model, version, logs)
    except BaseException:
        stack.management.scale(model, version, before.asked)
        raise


def unregister(stack: Stack, model: str, version: str) -> None:
    """Stop serving a version after the requests that wait for it; its archive stays in the store."""
    served = stack.management.describe(model, version)
    refuse_default(stack, served)
    drain(stack, served)
    remove(stack, served)


def refuse_default(stack: Stack, served: Served) -> None:
    """Raise NotReady if this is the default version of a model that has others."""
    model, version = served.model, served.version
    if stack.is_default(model, version) and len(stack.management.versions(model)) > 1:
        raise NotReady(
            f"{served} is the default version of {model}, and others are registered; "
            f"first make another one the default: marctl default {model} VERSION"
        )


def drain(stack: Stack, served: Served) -> None:
    """Wait till its queue is empty and its workers are idle, but no longer than one request may take.

    TorchServe does not tell whether a worker is at a batch; one that uses no processor time is taken for idle.
    """
    deadline = time.monotonic() + served.response_timeout_s
    used_s = -1.0
    while time.monotonic() < deadline:
        now = stack.management.describe(served.model, served.version)
        before_s, used_s = used_s, sum(processor_s(worker.pid) for worker in now.workers)
        if now.queue == 0 and 0 <= used_s - before_s <= IDLE_S and before_s >= 0:
            return
        time.sleep(DRAIN_S)


def processor_s(pid: int) -> float:
    """Processor time used so far; 0 for a process that is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
