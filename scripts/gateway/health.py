"""Tells Envoy which versions have a worker that can answer, in two files that Envoy watches.

TorchServe goes on queueing for workers that are dead or hang. So whoever watches over the stack calls `Health.step`
a few times a second: requests then go to the fallback at once, or get a 503 where there is none, and come back when
a worker answers again. Readiness is told from the same knowledge; TorchServe is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from marctl.core.explainers import models_in
from marctl.core.files import write_atomically
from marctl.core.json_text import compact
from marctl.gateway.discovery import Discovery
from marctl.gateway.names import PROBES, WORKERS, Json, cluster, typed
from marctl.gateway.policies import Traffic
from marctl.gateway.traffic import lua_filter

WITHOUT_WORKERS = f"{WORKERS}.json"
"""Which versions have no worker, and what becomes of their requests."""
READINESS = f"{PROBES}.json"
STOPPED_S = 1.0
"""A worker that is stopped for so long hangs. Debuggers and profilers stop a process for milliseconds."""
SILENT_S = 2.5
"""A worker hangs if its heartbeat, about twice a second, is missing for so long."""
LONGEST_STEP_S = 0.5
"""Time beyond this between two steps is not held against a worker: whoever steps may have been stopped itself."""
MOST_ROWS, MOST_REASONS = 100, 20
"""On the page that tells readiness."""
GONE = "is gone"
NOTHING_SERVED = "nothing is served here; what is declared, and what became of it, is shown by marctl status"
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
        known = {pid for workers in versions for pid in workers.pids}
        self.pulses = {pid: pulse for pid, pulse in self.pulses.items() if pid in known}
        # One process may be the worker of many versions.
        troubles = {pid: self.trouble(pid, passed_s) for pid in known}
        verdicts = [judge(workers, troubles) for workers in versions]
        without = [cluster(v.model, v.version) for v in verdicts if not v.answering]
        several = len(self.hosts) > 1
        told = (tuple(without), several)
        self.put(self.files / WITHOUT_WORKERS, told, lambda: without_workers(without, other_servers=several))
        known_of = (tuple(verdicts), frozenset(routed))
        self.put(self.files / READINESS, known_of, lambda: readiness(verdicts, routed))
        return verdicts

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

    def put(self, path: Path, told: object, make: Callable[[], Json]) -> None:
        """Write what `told` makes, unless it stands there."""
        if path not in self.written or self.written[path] != (told, identity(path)):
            write(path, make())
            self.written[path] = (told, identity(path))


def judge(workers: Workers, troubles: Mapping[int, str]) -> Verdict:
    """`troubles`: what keeps each process from answering, empty for nothing."""
    found = [
        f"worker {pid} {trouble}" if pid > 0 else "a worker is starting"
        for pid, ready in zip(workers.pids, workers.ready, strict=True)
        if (trouble := troubles[pid] or ("" if ready else "is loading"))
    ]
    return Verdict(workers.model, workers.version, len(workers.pids) - len(found), tuple(found))


def begin(files: Path) -> None:
    """For an Envoy that starts: what an earlier one was told is past; the next step tells it.

    As long as nobody knows better, versions have workers.
    """
    write(files / WITHOUT_WORKERS, without_workers([], other_servers=False))
    write(files / READINESS, unknown())


def without_workers(clusters: Sequence[str], *, other_servers: bool) -> Json:
    """The filter that keeps requests from these; `other_servers` than the stack's own may have workers for them."""
    if not clusters:
        return lua_filter(WORKERS, "-- Every version has a worker.\n")
    rows = "".join(f'["{name}"] = true, ' for name in clusters)
    code = f"local OTHER_SERVERS, WITHOUT = {str(other_servers).lower()}, {{ {rows}}}\n"
    return lua_filter(WORKERS, code + (Path(__file__).parent / "workers.lua").read_text())


def routed(policies: Mapping[str, Traffic]) -> list[tuple[str, str]]:
    """Model and version of all that have a weight."""
    return [(m, v) for m in models_in(policies) for v, weight in policies[m].split.items() if weight > 0]


def write(path: Path, resource: Json) -> None:
    """Envoy looks when a file is renamed into its place. Raises WriteFailed."""
    write_atomically(path, Discovery.of([resource]).text, mode=0o600)


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
    if not routed:
        return routes(503, {**not_ready(NOTHING_SERVED), "versions": []}, "")
    answering = {(v.model, v.version): v for v in verdicts if v.answering}
    missing = [(model, version) for model, version in sorted(routed) if (model, version) not in answering]
    troubles = {(v.model, v.version): "; ".join(v.troubles) or "it has no worker" for v in verdicts}
    why = [f"{m} {v} has traffic and no worker that can answer: {troubles.get((m, v), 'unknown')}" for m, v in missing]
    marks = [" routed" if row["routed"] else "" for row in rows]
    report = "".join(f"{v.model}/{v.version}={v.answering}{mark}\n" for v, mark in zip(verdicts, marks, strict=True))
    # Whoever asks every second needs the code and the reasons; /health tells all versions.
    page = {"versions": rows[:MOST_ROWS], **({"versions_in_all": len(rows)} if len(rows) > MOST_ROWS else {})}
    if why:
        more = [f"{len(why) - MOST_REASONS} more are without, too"] if len(why) > MOST_REASONS else []
        return routes(503, {**not_ready(". ".join(why[:MOST_REASONS] + more)), **page}, report)
    return routes(200, {"status": "ready", **page}, report)


def unknown() -> Json:
    return routes(503, {**not_ready("nobody has looked at the workers yet"), "versions": []}, "")


def not_ready(detail: str) -> Json:
    return {"error": "not_ready", "detail": detail, "status": "not ready"}


def routes(code: int, page: Json, report: str) -> Json:
    """`report` is what the scripts in Lua read: each version with its number of workers, and whether it has traffic."""
    pages = {"/healthz": (200, compact({"status": "alive"})), "/ready": (code, compact(page))}
    nothing = compact({"error": "no_such_path", "detail": "there are: /healthz, /ready"})
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
