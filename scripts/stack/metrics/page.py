"""Serves the stack's Prometheus page, as OpenMetrics to those who ask for it.

Only the plain text format has what TorchServe itself counts, too, whose names are no OpenMetrics.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import requests
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from marctl.core.errors import UserError
from marctl.core.http import HOST, local_session
from marctl.stack.metrics.autoscaler import AutoscalerFigures
from marctl.stack.metrics.batch_jobs import BatchJobFigures
from marctl.stack.metrics.gateway import GatewayFigures
from marctl.stack.metrics.gpus import Gpus
from marctl.stack.metrics.host import Host
from marctl.stack.metrics.parts import Parts
from marctl.stack.metrics.prediction_log import PredictionLogFigures
from marctl.stack.metrics.queues import Queues
from marctl.stack.metrics.workers import FOLDER, WorkerFigures
from marctl.stack.state import Running, State

log = logging.getLogger(__name__)
PATH = "/metrics"
TIDY_S = 60.0
TIMEOUT_S = 2.0
"""For each part that is asked; the gateway waits for the whole page a little longer."""
OPEN_METRICS = "application/openmetrics-text"


class Collector(Protocol):
    def collect(self) -> Any: ...


class MetricsPage:
    """Served by threads of this process from `start` to `stop`."""

    def __init__(self, state: State, current: Callable[[], Running]) -> None:
        """`current`: the stack as it runs now; inner ports may move when a server is started again."""
        running, self._current = current(), current
        self._address = urlsplit(running.metrics)
        self._figures = WorkerFigures(Path(running.temp) / FOLDER)
        self._collectors: list[Collector] = [
            self._figures,
            Queues(running.management, TIMEOUT_S),
            Parts(state),
            Host(state.folder),
            Gpus(),
            PredictionLogFigures(state.prediction_log),
            AutoscalerFigures(state),
        ]
        if running.gateway is not None:
            self._collectors.append(GatewayFigures(self._admin, TIMEOUT_S))
        if (batch := state.gateway_settings().batch) is not None:
            self._collectors.append(BatchJobFigures(batch, TIMEOUT_S))
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

    def text(self, accept: str) -> tuple[bytes, str]:
        """The page in the format that an Accept header asks for, and the name of that format."""
        encode, content_type = choose_encoder(accept)
        registry = CollectorRegistry()
        for collector in self._collectors:
            registry.register(cast(Any, collector))
        figures = bytes(encode(registry))
        if content_type.startswith(OPEN_METRICS):
            return figures, content_type
        return self._torchserve_text() + figures, content_type

    def _admin(self) -> str:
        gateway = self._current().gateway
        assert gateway is not None
        return gateway.admin

    def _torchserve_text(self) -> bytes:
        port = self._current().ports.torchserve_metrics
        try:
            with local_session() as session:
                page = session.get(f"http://{HOST}:{port}{PATH}", timeout=TIMEOUT_S)
        except requests.RequestException as err:
            return f"# no figures from TorchServe: {type(err).__name__}\n".encode()
        return page.content.rstrip(b"\n") + b"\n"

    def _tidy(self) -> None:
        while not self._stopped.wait(TIDY_S):
            try:
                self._figures.tidy()
            except OSError as err:
                log.warning("the figures of workers that have ended could not be summed up: %s", err)


class Server(ThreadingHTTPServer):
    """Answers every GET of the page with what `text` gives."""

    def __init__(self, address: tuple[str, int], text: Callable[[str], tuple[bytes, str]]) -> None:
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
        body, content_type = cast(Server, self.server).text(self.headers.get("Accept") or "")
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
