"""What the stack's processes other than workers take, and whether they are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marctl.core.errors import UserError
from marctl.stack import redis_server
from marctl.stack.state import Redis, Running, State

LABELS = ("part",)


class Parts:
    """TorchServe, Envoy, both stores, the batch service, the process of this page; workers count themselves."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        pids: dict[str, int | None] = {"reconciler": os.getpid()}
        up = GaugeMetricFamily("marctl_part_up", "1 for a part that runs; stores must answer, too.", labels=LABELS)
        with suppress(UserError):
            running = self._state.running()
            if running is not None:
                pids |= pids_of(running)
                for part, there in presence(running, pids).items():
                    up.add_metric((part,), there)
        yield up
        yield from usage(pids)


def pids_of(running: Running) -> dict[str, int | None]:
    """Of the parts that the stack has; None for one that is not running, or is somebody else's."""
    found = {"torchserve": running.server.pid if running.server and running.server.alive else None}
    if running.gateway is not None:
        found["envoy"] = running.gateway.pid
    if running.batch is not None:
        found["batch"] = running.batch.pid if running.batch.alive else None
    for part, store in stores_of(running).items():
        found[part] = store.pid
    return found


def stores_of(running: Running) -> dict[str, Redis]:
    """Where cache and log stand, and where features do."""
    stores = {"redis": running.redis, "features": running.features}
    return {part: store for part, store in stores.items() if store is not None}


def presence(running: Running, pids: dict[str, int | None]) -> dict[str, bool]:
    found: dict[str, bool] = {part: pids[part] is not None for part in ("torchserve", "envoy", "batch") if part in pids}
    return found | {part: redis_server.answers(store.url) for part, store in stores_of(running).items()}


def usage(pids: dict[str, int | None]) -> Iterator[Metric]:
    cpu = CounterMetricFamily("marctl_process_cpu_seconds", "Processor time of a part.", labels=LABELS)
    memory = GaugeMetricFamily("marctl_process_resident_memory_bytes", "Memory of a part.", labels=LABELS)
    files = GaugeMetricFamily("marctl_process_open_fds", "Open files and connections of a part.", labels=LABELS)
    started = GaugeMetricFamily(
        "marctl_process_start_time_seconds", "When a part started, in seconds since 1970.", labels=LABELS
    )
    for part, pid in pids.items():
        with suppress(psutil.Error):
            process = psutil.Process(pid) if pid is not None else None
            if process is None:
                continue
            times = process.cpu_times()
            cpu.add_metric((part,), times.user + times.system)
            memory.add_metric((part,), process.memory_info().rss)
            files.add_metric((part,), process.num_fds())
            started.add_metric((part,), process.create_time())
    yield from (cpu, memory, files, started)
