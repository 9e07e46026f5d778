"""Tells Envoy which versions have a worker that can answer, in files that Envoy watches.

TorchServe goes on queueing for workers that are dead or hang. So whoever watches over the stack calls `Health.step`
a few times a second: requests then go to the fallback at once, or get a 503 where there is none, and come back when
a worker answers again. Readiness is told from the same knowledge; TorchServe is not asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import psutil

from scripts.core.explainers import models_in
from scripts.core.files import write_atomically
from scripts.gateway.clusters import assignment
from scripts.gateway.names import PROBES, Json, endpoints_file, typed
from scripts.gateway.policies import Served, Traffic

ENDPOINTS = "endpoints"
"""Folder, beside Envoy's other files, of one file per version."""
READINESS = f"{PROBES}.json"
STOPPED_S = 1.0
"""A worker that is stopped for so long hangs. Debuggers and profilers stop a process for milliseconds."""
SILENT_S = 2.5
"""A worker hangs if its heartbeat, about twice a second, is missing for so long."""
LONGEST_STEP_S = 0.5
"""Time beyond this between two steps is not held against a worker: whoever steps may have been stopped itself."""
GONE = "is gone"
Identity = tuple[int, int] | None


@dataclass(frozen=True)
class Workers:
    """A registered version's worker processes, as TorchServe described them last."""

    model: str
    version: str
    pids: tuple[int, ...]
    ready: tuple[bool, ...]
    """For each pid, whether the worker has loaded the model."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a version: how many workers can answer, and what is wrong with each other one."""

    model: str
    version: str
    answering: int
    troubles: tuple[str, ...] = ()


@dataclass
class Pulse:
    """What was seen of one worker process."""

    process: psutil.Process
    beat: int | None = None
    """The heartbeat file's time; None for a worker without one."""
    silent_s: float = 0.0
    stopped_s: float = 0.0


@dataclass
class Health:
    """Keeps the files of one gateway; not for several threads.

    `files`: the folder that Envoy watches; `hosts`: the URLs of TorchServe and of further servers (`hosts_of`);
    `heartbeats`: the folder in which each worker touches the file of its pid. A worker that never did has none.
    """

    files: Path
    hosts: Sequence[str]
    heartbeats: Path
    clock: Callable[[], float] = time.monotonic
    pulses: dict[int, Pulse] = field(default_factory=dict)
    written: dict[Path, tuple[object, Identity]] = field(default_factory=dict)
    """File to what it tells, and to what it was when it was written."""
    last: float | None = None

    def step(self, versions: Iterable[Workers], routed: Collection[tuple[str, str]]) -> list[Verdict]:
        """Look at the workers and write what has changed.

        `routed`: model and version of those that get traffic; the gateway is ready while each of them can answer.
        """
        now = self.clock()
        passed_s = min(now - self.last, LONGEST_STEP_S) if self.last is not None else 0.0
        self.last = now
        versions = list(versions)
        verdicts = [self.judge(workers, passed_s) for workers in versions]
        known = {pid for workers in versions for pid in workers.pids}
        self.pulses = {pid: pulse for pid, pulse in self.pulses.items() if pid in known}
        for verdict in verdicts:
            self.tell(verdict)
        known_of = (tuple(verdicts), frozenset(routed))
        self.put(self.files / READINESS, known_of, lambda: readiness(verdicts, routed))
        return verdicts

    def judge(self, workers: Workers, passed_s: float) -> Verdict:
        troubles = [
            f"worker {pid} {trouble}" if pid > 0 else "a worker is starting"
            for pid, ready in zip(workers.pids, workers.ready, strict=True)
            if (trouble := self.trouble(pid, passed_s) or ("" if ready else "is loading"))
        ]
        return Verdict(workers.model, workers.version, len(workers.pids) - len(troubles), tuple(troubles))

    def trouble(self, pid: int, passed_s: float) -> str:
        """What keeps a worker from answering; empty if nothing does."""
        pulse = self.pulses.get(pid) or self.meet(pid)
        try:
            if pulse is None or not pulse.process.is_running():
                return GONE
            state = pulse.process.status()
        except psutil.NoSuchProcess:
            return GONE
        if state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return GONE
        stopped = state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        pulse.stopped_s = pulse.stopped_s + passed_s if stopped else 0.0
        beat = self.beat(pid)
        pulse.silent_s = pulse.silent_s + passed_s if beat == pulse.beat and beat is not None else 0.0
        pulse.beat = beat
        if pulse.stopped_s >= STOPPED_S:
            return "is stopped"
        return f"has given no sign of life for {SILENT_S:g} s" if pulse.silent_s >= SILENT_S else ""

    def meet(self, pid: int) -> Pulse | None:
        """A process that is seen for the first time; None if it is not there."""
        try:
            self.pulses[pid] = Pulse(psutil.Process(pid))
        except (psutil.NoSuchProcess, ValueError):
            return None
        return self.pulses[pid]

    def beat(self, pid: int) -> int | None:
        """Compared only with itself, so that nothing depends on how clocks are set."""
        try:
            return (self.heartbeats / str(pid)).stat().st_mtime_ns
        except OSError:
            return None

    def tell(self, verdict: Verdict) -> None:
        """Whether requests may go to the version."""
        model, version, has_worker = verdict.model, verdict.version, verdict.answering > 0
        path = self.files / ENDPOINTS / endpoints_file(model, version)
        self.put(path, has_worker, lambda: assignment(model, version, self.hosts, has_worker=has_worker))

    def put(self, path: Path, told: object, make: Callable[[], Json]) -> None:
        """Write what `told` makes, unless it stands there."""
        if path not in self.written or self.written[path] != (told, identity(path)):
            write(path, make())
            self.written[path] = (told, identity(path))


def provide(files: Path, hosts: Sequence[str], served: Served) -> None:
    """Files for versions that have none: as long as nobody knows better, they have workers."""
    (files / ENDPOINTS).mkdir(mode=0o700, exist_ok=True)
    for model, versions in served.items():
        for version in versions:
            path = files / ENDPOINTS / endpoints_file(model, version)
            if not path.exists():
                write(path, assignment(model, version, hosts, has_worker=True))


def begin(files: Path) -> None:
    """For an Envoy that starts: what an earlier one was told is past; the next step tells it."""
    forget(files, {})
    write(files / READINESS, unknown())


def forget(files: Path, served: Served) -> None:
    """Remove the files of versions that are no longer served."""
    kept = {endpoints_file(model, version) for model, versions in served.items() for version in versions}
    for path in (files / ENDPOINTS).glob("*.json"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def routed(policies: Mapping[str, Traffic]) -> list[tuple[str, str]]:
    """Model and version of all that have a weight."""
    return [(m, v) for m in models_in(policies) for v, weight in policies[m].split.items() if weight > 0]


def write(path: Path, resource: Json) -> None:
    """Envoy looks when a file is renamed into place. Raises WriteFailed."""
    resources = [resource]
    digest = sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    write_atomically(path, json.dumps({"version_info": digest, "resources": resources}) + "\n", mode=0o600)


def identity(path: Path) -> Identity:
    """Inode and time, None if the file is not there; another one is in the place of what was written before."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def readiness(verdicts: Sequence[Verdict], routed: Collection[tuple[str, str]]) -> Json:
    """The routes of the listener for probes."""
    rows = [
        {"model": v.model, "version": v.version, "routed": (v.model, v.version) in routed, "workers_ready": v.answering}
        for v in verdicts
    ]
    answering = {(v.model, v.version): v for v in verdicts if v.answering}
    missing = [(model, version) for model, version in sorted(routed) if (model, version) not in answering]
    troubles = {(v.model, v.version): "; ".join(v.troubles) or "it has no worker" for v in verdicts}
    why = [f"{m} {v} has traffic and no worker that can answer: {troubles.get((m, v), 'unknown')}" for m, v in missing]
    report = "".join(f"{v.model}/{v.version}={v.answering}\n" for v in verdicts)
    if why:
        return routes(503, {**not_ready(". ".join(why)), "versions": rows}, report)
    return routes(200, {"status": "ready", "versions": rows}, report)


def unknown() -> Json:
    return routes(503, {**not_ready("nobody has looked at the workers yet"), "versions": []}, "")


def not_ready(detail: str) -> Json:
    return {"error": "not_ready", "detail": detail, "status": "not ready"}


def routes(code: int, page: Json, report: str) -> Json:
    """`report` is what filters.lua reads: each version with its number of workers that can answer."""
    pages = {"/healthz": (200, json.dumps({"status": "alive"})), "/ready": (code, json.dumps(page))}
    nothing = json.dumps({"error": "no_such_path", "detail": "there are: /healthz, /ready"})
    found = [
        {"match": {"path": path}, "direct_response": {"status": status, "body": {"inline_string": text}}}
        for path, (status, text) in {**pages, "/workers": (200, report or "\n")}.items()
    ]
    found.append({"match": {"prefix": "/"}, "direct_response": {"status": 404, "body": {"inline_string": nothing}}})
    return typed(
        "envoy.config.route.v3.RouteConfiguration",
        name=PROBES,
        virtual_hosts=[{"name": PROBES, "domains": ["*"], "routes": found}],
        max_direct_response_body_size_bytes=1 << 20,
    )
