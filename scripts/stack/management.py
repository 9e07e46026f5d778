"""TorchServe's management API (0.12.0, FE/http/api/rest/ManagementRequestHandler.java).

A call holds one of the few threads that also serve predictions until it is answered, and every client connection of
that thread waits. So workers are never started with `synchronous=true`, and archives are registered as folders: the
server would unpack a file within the call, and an archive of 400 MB held half of the clients for 2 seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from marctl.core.errors import UserError
from marctl.core.http import local_session
from marctl.stack.store import EXPLAINS, UNPACKED

TIMEOUT_S = 60.0
PAGE = 100


class ManagementFailed(UserError):
    """TorchServe refused, or did not answer."""


class NoSuchVersion(UserError):
    """The server has no such model, or not in this version."""


@dataclass(frozen=True)
class Worker:
    """One worker process; `pid` is -1 until it has started."""

    id: str
    pid: int
    ready: bool
    since: str


@dataclass(frozen=True)
class Served:
    """One registered version, as the server describes it. `queue` counts the requests that wait."""

    model: str
    version: str
    archive: str
    digest: str
    """The first part of the archive's sha256."""
    asked: int
    workers: tuple[Worker, ...]
    batch_size: int
    batch_delay_ms: int
    response_timeout_s: int
    startup_timeout_s: int
    queue: int
    queue_size: int

    def __str__(self) -> str:
        return f"{self.model} {self.version}"

    @property
    def ready(self) -> int:
        return sum(worker.ready for worker in self.workers)

    @property
    def pids(self) -> list[int]:
        """Of the processes that have started."""
        return [worker.pid for worker in self.workers if worker.pid > 0]

    @property
    def worker_ids(self) -> set[str]:
        return {worker.id for worker in self.workers}

    @classmethod
    def of(cls, description: dict[str, Any]) -> Served:
        queue = description.get("jobQueueStatus", {})
        folder = Path(description["modelUrl"])
        pending, left = queue.get("pendingRequests", 0), queue.get("remainingCapacity", 0)
        workers = [Worker(w["id"], w["pid"], w["status"] == "READY", w["startTime"]) for w in description["workers"]]
        return cls(
            model=description["modelName"],
            version=description["modelVersion"],
            archive=folder.name.removesuffix(UNPACKED).removesuffix(EXPLAINS),
            digest=folder.parent.name,
            asked=description["minWorkers"],
            workers=tuple(workers),
            batch_size=description["batchSize"],
            batch_delay_ms=description["maxBatchDelay"],
            response_timeout_s=description["responseTimeout"],
            startup_timeout_s=description["startupTimeout"],
            queue=pending,
            queue_size=pending + left,
        )


class Management:
    """Calls to one server's management port."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._session = local_session()

    def register(self, folder: Path, name: str | None = None) -> None:
        """Begin to load an unpacked archive, with one worker or as many as its own configuration says.

        `name`: to be registered as, instead of the archive's own.
        """
        named = {"model_name": name} if name else {}
        self._call("POST", "/models", url=str(folder), initial_workers=1, synchronous="false", **named)

    def scale(self, model: str, version: str, workers: int) -> None:
        """Begin to start or stop workers, up to exactly so many."""
        self._call("PUT", f"/models/{model}/{version}", min_worker=workers, max_worker=workers, synchronous="false")

    def set_default(self, model: str, version: str) -> None:
        self._call("PUT", f"/models/{model}/{version}/set-default")

    def unregister(self, model: str, version: str) -> None:
        self._call("DELETE", f"/models/{model}/{version}")

    def describe(self, model: str, version: str) -> Served:
        return Served.of(self._call("GET", f"/models/{model}/{version}")[0])

    def versions(self, model: str) -> list[Served]:
        return [Served.of(description) for description in self._call("GET", f"/models/{model}/all")]

    def default_version(self, model: str) -> str:
        return str(self._call("GET", f"/models/{model}")[0]["modelVersion"])

    def models(self) -> Iterator[str]:
        """Every model's name."""
        token: str | None = None
        while True:
            page = self._call("GET", "/models", limit=PAGE, **({"next_page_token": token} if token else {}))
            yield from (model["modelName"] for model in page["models"])
            token = page.get("nextPageToken")
            if token is None:
                return

    def _call(self, method: str, path: str, **parameters: str | int) -> Any:
        try:
            answer = self._session.request(method, self._url + path, params=parameters, timeout=self._timeout_s)
        except requests.RequestException as err:
            raise ManagementFailed(f"{self._url} did not answer {method} {path}: {type(err).__name__}") from err
        if answer.ok:
            return answer.json()
        message = message_of(answer)
        if answer.status_code == 404:
            raise NoSuchVersion(f"{message}; `marctl status` lists what is served")
        raise ManagementFailed(f"TorchServe refused {method} {path} ({answer.status_code}): {message}")


def message_of(answer: requests.Response) -> str:
    """The text of TorchServe's own error body, {"code", "type", "message"}."""
    try:
        return str(answer.json()["message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return answer.text.strip()[:200] or answer.reason
