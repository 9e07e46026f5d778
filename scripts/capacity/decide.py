"""How many workers a version should have: from what was seen of it, to a number and the reason.

Little's law (Little 1961): requests that arrive at a rate, and keep a worker busy for so long each, keep `rate x time`
workers busy on average. At the target utilisation that takes `rate x time / utilisation` workers. On top come those
that work off the requests which wait now, and which will have gathered by the time that a further worker has started.

The objective says when, the law says how many: workers are added only where the queue time is near its objective, for
batches grow with the load and make a request cheaper. They are taken away only once nothing has asked for them for a
while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["steady", "load", "queue", "idle", "bounds", "memory", "cores", "gpu", "unhelpful", "unknown"]
NEAR = 0.5
"""Of the objective; below it the queue is short, and no worker is added."""
HELPFUL = 0.3
"""Workers that are busy for a smaller share of the time do not make the queue time, and more of them would not help."""
GPU_FULL = 0.95
"""From this share of its time on, a GPU has nothing left for one more worker."""


@dataclass(frozen=True)
class Target:
    """What is to be held, and within which bounds. `queue_s`: the objective for the queue time's `statistic`."""

    least: int = 1
    most: int = 1
    queue_s: float = 0.1
    statistic: str = "p99"
    utilisation: float = 0.7
    """Share of the time in which workers may be busy."""
    drain_s: float = 10.0
    """What waits is to be worked off within so long."""
    tolerance: float = 0.1
    """By so much the demand may differ from the workers there are before anything changes."""


@dataclass(frozen=True)
class Load:
    """What was seen of a version lately. Times are in seconds."""

    wanted: int
    """Workers that are declared."""
    ready: int
    arrivals: float
    """Requests a second, those that were refused for a full queue included."""
    waiting: int
    """Requests in the queue now."""
    busy: float = 0.0
    """Share of the time in which its workers were at a batch."""
    busy_s: float | None = None
    """Of a worker, for each request that it answered; None where none was answered."""
    cpu_s: float | None = None
    """Processor time of a worker for each request."""
    queue_s: float | None = None
    """The objective's statistic of the queue time; None where it is not known."""
    peak: float | None = None
    """The most workers that were in demand over the time after which one may go; None before so long was seen."""
    start_s: float = 10.0
    """From the decision until a further worker answers."""


@dataclass(frozen=True)
class Room:
    """What one more worker could have. None for what is not known or no limit.

    A start computes, for seconds, beside the workers that serve: of many at once the first one is ready no sooner than
    the last one. So no more start at a time than there are cores.
    """

    starts: int | None = None
    """Workers that may start at once."""
    cores: float | None = None
    """For this version's workers: those of the machine or the container that other versions leave."""
    memory_bytes: int | None = None
    worker_bytes: int | None = None
    gpu: float | None = None
    """Share of the time in which the fullest GPU computed; None without one."""


@dataclass(frozen=True)
class Decision:
    """`workers` are wanted from now on. `demand`: what the load alone would take, before bounds and room."""

    workers: int
    demand: float
    kind: Kind
    reason: str


def decide(target: Target, load: Load, room: Room) -> Decision:
    """The workers that a version should have. A pure function: nothing else decides."""
    if load.wanted < target.least or load.wanted > target.most:
        workers = min(max(load.wanted, target.least), target.most)
        return Decision(workers, 0.0, "bounds", f"the bounds are {target.least} to {target.most}")
    if load.busy_s is None and (load.waiting or load.arrivals):
        waits = f"{load.waiting} wait" if load.waiting else "requests come"
        return Decision(load.wanted, 0.0, "unknown", f"{waits} and none has been answered, so their cost is not known")
    demand = demand_of(target, load)
    if demand > load.wanted * (1 + target.tolerance) or wait_of(load) > target.queue_s:
        return grown(target, load, room, demand)
    return shrunk(target, load, demand)


def demand_of(target: Target, load: Load) -> float:
    """Workers that the load takes: for what arrives, and for what waits or will by the time that another one is up."""
    busy_s = load.busy_s or 0.0
    served = load.ready / busy_s if busy_s else math.inf
    gathered = load.waiting + max(load.arrivals - served, 0.0) * load.start_s
    return load.arrivals * busy_s / target.utilisation + gathered * busy_s / target.drain_s


def wait_of(load: Load) -> float:
    """Seconds that requests wait: as measured of those that were answered, or as those will that wait now."""
    coming = load.waiting * (load.busy_s or 0.0) / max(load.ready, 1)
    return max(load.queue_s or 0.0, coming)


def grown(target: Target, load: Load, room: Room, demand: float) -> Decision:
    """More workers, if they would help and there is room for them."""
    wait, seen = wait_of(load), told(target, load, demand)
    if wait <= NEAR * target.queue_s:
        return Decision(load.wanted, demand, "steady", f"the queue is short: {seen}")
    if load.ready < load.wanted:
        return Decision(load.wanted, demand, "steady", f"{load.wanted - load.ready} workers are still starting: {seen}")
    needed = math.ceil(demand - 1e-9)
    if needed <= load.wanted and load.busy < HELPFUL:
        return Decision(
            load.wanted,
            demand,
            "unhelpful",
            f"workers are busy for {load.busy:.0%} of the time, more would not help: {seen}",
        )
    needed = max(needed, load.wanted + 1)
    most, kind, limit = limit_of(target, load, room)
    if most <= load.wanted:
        return Decision(load.wanted, demand, kind, f"{limit}: {seen}")
    workers = min(needed, most)
    held = f", held to {workers} because {limit}" if workers < needed else ""
    if room.starts is not None and workers > load.wanted + room.starts:
        workers = load.wanted + room.starts
        held = f", {room.starts} at a time, for a start computes"
    return Decision(workers, demand, "queue" if wait > target.queue_s else "load", f"{seen}{held}")


def shrunk(target: Target, load: Load, demand: float) -> Decision:
    """Fewer workers, if nothing has asked for them lately."""
    seen = told(target, load, demand)
    if load.peak is None:
        return Decision(load.wanted, demand, "steady", seen)
    needed = max(math.ceil(max(load.peak, demand) * (1 + target.tolerance) - 1e-9), target.least)
    if needed >= load.wanted or wait_of(load) > NEAR * target.queue_s:
        return Decision(load.wanted, demand, "steady", seen)
    return Decision(needed, demand, "idle", f"no more than {load.peak:.1f} were in demand lately: {seen}")


def limit_of(target: Target, load: Load, room: Room) -> tuple[int, Kind, str]:
    """The most workers there may be, and what sets that limit."""
    limits: list[tuple[int, Kind, str]] = [(target.most, "bounds", f"{target.most} is the upper bound")]
    if room.gpu is not None and room.gpu >= GPU_FULL:
        limits.append((load.wanted, "gpu", f"the GPU computes for {room.gpu:.0%} of the time"))
    if room.cores is not None and load.busy_s and load.cpu_s:
        each = load.cpu_s / load.busy_s
        most = max(round(room.cores / each), 1)
        limits.append((most, "cores", f"{room.cores:.1f} cores are there and a busy worker takes {each:.2f}"))
    if room.memory_bytes is not None and room.worker_bytes:
        most = load.wanted + max(room.memory_bytes, 0) // room.worker_bytes
        free, each_mb = max(room.memory_bytes, 0) >> 20, room.worker_bytes >> 20
        limits.append((most, "memory", f"{free} MiB may be taken and a worker has {each_mb}"))
    return min(limits, key=lambda limit: limit[0])


def told(target: Target, load: Load, demand: float) -> str:
    """The figures that a decision rests on."""
    parts = [f"{load.arrivals:.1f} requests/s"]
    if load.busy_s is not None:
        parts.append(f"{load.busy_s * 1000:.1f} ms of a worker each, {demand:.1f} workers in demand")
    if load.queue_s is not None:
        parts.append(f"queue {target.statistic} {load.queue_s * 1000:.0f} of {target.queue_s * 1000:.0f} ms")
    return ", ".join([*parts, f"{load.waiting} wait"])
