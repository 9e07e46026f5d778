"""A stack's Prometheus page: TorchServe's own figures, those of the workers, and how many requests wait.

Workers write their figures into memory-mapped files (handlers/torchserve/metrics.py). Counters and histograms of a
process that has ended still count; its states do not.
"""

from __future__ import annotations

import glob
import logging
import os
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import requests
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from scripts.core.errors import UserError
from scripts.core.http import HOST, local_session
from scripts.stack.management import Management, Served
from scripts.stack.state import Running

log = logging.getLogger(__name__)
FOLDER = "figures"
"""In the stack's temp folder."""
PATH = "/metrics"
TIDY_S = 60.0
TIMEOUT_S = 2.0
"""For TorchServe; the gateway waits for the whole page a little longer."""
ENDED = "ended"
"""Stands for the process in the name of the file that holds the sums of all that have ended."""
CLOCK_S = 2.0
"""By how much a process's start may seem later than that of its file."""


class MetricsPage:
    """Served by threads of this process from `start` to `stop`."""

    def __init__(self, running: Running) -> None:
        self._address = urlsplit(running.metrics)
        self._torchserve = f"http://{HOST}:{running.ports.torchserve_metrics}"
        self._figures = WorkerFigures(Path(running.temp) / FOLDER)
        self._queues = Queues(running.management)
        self._server: Server | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Raises UserError if its port is taken."""
        try:
            self._server = Server((str(self._address.hostname), self._address.port or 0), self.text)
        except OSError as err:
            raise UserError(f"cannot serve metrics at {self._address.geturl()}: {err.strerror}") from err
        for name, run in (("metrics-page", self._server.serve_forever), ("metrics-tidy", self._tidy)):
            threading.Thread(target=run, name=name, daemon=True).start()

    def stop(self) -> None:
        """Does nothing if it was not started."""
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def text(self) -> bytes:
        """In Prometheus's text format."""
        registry = CollectorRegistry()
        for collector in (self._figures, self._queues):
            registry.register(collector)
        return self._torchserve_text() + bytes(generate_latest(registry))

    def _torchserve_text(self) -> bytes:
        try:
            with local_session() as session:
                page = session.get(f"{self._torchserve}{PATH}", timeout=TIMEOUT_S)
        except requests.RequestException as err:
            return f"# no figures from TorchServe: {type(err).__name__}\n".encode()
        return page.content.rstrip(b"\n") + b"\n"

    def _tidy(self) -> None:
        while not self._stopped.wait(TIDY_S):
            try:
                self._figures.tidy()
            except OSError as err:
                log.warning("the figures of workers that have ended could not be summed up: %s", err)


class WorkerFigures:
    """The sums over all workers' files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._forget_states()
            files = [name for name in glob.glob(f"{glob.escape(str(self._folder))}/*.db") if is_whole(name)]
            yield from MultiProcessCollector.merge(files)

    def tidy(self) -> None:
        """Put the figures of processes that have ended into one file for each kind, so that a worker which fails at
        every start does not fill the disk."""
        with self._lock:
            self._forget_states()
            kinds: dict[str, list[Path]] = defaultdict(list)
            for path in self._folder.glob("[ch]*.db"):
                if not is_alive(path):
                    kinds[path.name.partition("_")[0]].append(path)
            for kind, paths in kinds.items():
                if len(paths) > 1:
                    sum_up(paths, self._folder / f"{kind}_{ENDED}.db")

    def _forget_states(self) -> None:
        for path in self._folder.glob("gauge_*.db"):
            if not is_alive(path):
                path.unlink(missing_ok=True)


class Queues:
    """TorchServe's own count of the requests that wait for each version."""

    def __init__(self, management: str) -> None:
        self._management = Management(management, timeout_s=TIMEOUT_S)

    def collect(self) -> Iterator[Metric]:
        labels = ("model", "version")
        family = GaugeMetricFamily("batcher_queue_size", "Requests that wait for a worker.", labels=labels)
        with suppress(UserError):
            for served in self._served():
                family.add_metric((served.model, served.version), served.queue)
        yield family

    def _served(self) -> Iterator[Served]:
        for model in self._management.models():
            yield from self._management.versions(model)


def is_alive(path: Path) -> bool:
    """Whether the process that a file is named after still runs, and is no later one of the same number."""
    pid = path.stem.rpartition("_")[2]
    if not pid.isdecimal():
        return False
    with suppress(psutil.Error, FileNotFoundError):
        return psutil.Process(int(pid)).create_time() <= path.stat().st_mtime + CLOCK_S
    return False


def is_whole(name: str) -> bool:
    """Whether a file can be read: one that is damaged must not blank the page."""
    try:
        for _ in MmapedDict.read_all_values_from_file(name):
            pass
    except (OSError, RuntimeError, struct.error, UnicodeDecodeError):
        return False
    return True


def sum_up(paths: Iterable[Path], target: Path) -> None:
    """Replace files by one that holds the sums of their values."""
    sums: dict[str, float] = defaultdict(float)
    for path in paths:
        if is_whole(str(path)):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] += value
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    written = MmapedDict(str(partial))
    for key, value in sums.items():
        written.write_value(key, value, 0.0)
    written.close()
    os.replace(partial, target)
    for path in paths:
        if path != target:
            path.unlink(missing_ok=True)


class Server(ThreadingHTTPServer):
    """Answers every GET of the page with what `text` gives."""

    def __init__(self, address: tuple[str, int], text: Callable[[], bytes]) -> None:
        self.text = text
        super().__init__(address, Page)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.exception("a request for the metrics page failed")


class Page(BaseHTTPRequestHandler):
    """One request."""

    timeout = 5.0
    """For a client that connects and says nothing."""

    def do_GET(self) -> None:
        if urlsplit(self.path).path != PATH:
            self.send_error(404)
            return
        body = cast(Server, self.server).text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def make_folder(temp: Path) -> Path:
    """For the workers' figures. Those of workers before a server's death stay, and go on counting."""
    folder = temp / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
