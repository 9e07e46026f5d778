"""The processes beside TorchServe and Envoy: Redis, the batch service, the autoscaler.

Predictions go on without them. So the failure of one is a condition that `marctl status` tells, and it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from marctl.core.errors import UserError
from marctl.stack.journal import Journal
from marctl.stack.redis_server import INSTANCES, Instance
from marctl.stack.servers import Servers

BATCH, AUTOSCALER = "the batch service", "the autoscaler"
NAMES = {BATCH, AUTOSCALER, *(instance.name for instance in INSTANCES)}
"""As conditions name them."""


class Companions:
    """Starts them, and starts again what has died."""

    def __init__(self, servers: Servers, journal: Journal) -> None:
        self._servers = servers
        self._journal = journal

    def start_redis(self) -> None:
        """Before the workers, which take what they need from it at their start."""
        for instance in INSTANCES:
            self._start_redis(instance)

    def watch(self, *, serving: bool) -> None:
        """`serving`: whether something serves; until then there is nothing to scale."""
        for instance in INSTANCES:
            self._revive_redis(instance)
        if not self._servers.batch_alive():
            self._start(BATCH, self._servers.start_batch)
        if serving and not self._servers.autoscaler_alive():
            self._start(AUTOSCALER, self._servers.start_autoscaler)

    def _start_redis(self, instance: Instance) -> None:
        if not self._servers.redis_alive(instance):
            self._start(instance.name, lambda: self._servers.start_redis(instance))

    def _revive_redis(self, instance: Instance) -> None:
        redis = self._servers.redis(instance)
        if redis is None or redis.process is None or self._servers.redis_alive(instance):
            return
        self._start_redis(instance)
        now = self._servers.redis(instance)
        if now is not None and now != redis:
            again = f"{instance.name} (pid {redis.pid}) had died and was started again, pid {now.pid}"
            self._journal.note(f"{again}; cached answers are gone" if instance.cached else again)

    def _start(self, name: str, start: Callable[[], None]) -> None:
        """Unless it has failed a moment ago."""
        if self._journal.waits(name):
            return
        try:
            start()
        except UserError as err:
            self._journal.trouble(name, err)
        else:
            self._journal.well(name)
