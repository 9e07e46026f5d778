"""A worker's connection to Redis. The prediction cache, the prediction log and the online features have one each.

Redis is optional at every moment. A call waits REPLY_TIMEOUT_S at most, and raises for nothing that Redis does. The
link is a circuit breaker: after one failure Redis is not asked at all. A thread reconnects, at once after the first
failure and then at growing intervals, and the link is available again only when Redis has answered a probe as quickly
as a batch needs it. So a batch never waits for a connection, and a Redis that hangs delays one batch, not each.

Commands are sent and replies read here, not by redis-py's pipeline: `send` then costs no round trip. For one batch (34
keys read, 4 written; Valkey 9.1 on a socket, 2 cores) that is 65 against 166 microseconds, and 40 against 102 of
processor time.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.connection import ConnectionInterface

log = logging.getLogger(__name__)

URL_VARIABLE = "REDIS_URL"
FEATURES_URL_VARIABLE = "FEATURES_REDIS_URL"
"""Where online features stand; if it is unset, they stand where REDIS_URL says."""
REPLY_TIMEOUT_S = 0.008
"""A local Redis answers 32 keys within 0.1 ms, but on a busy machine it may have to wait for a processor."""
CONNECT_TIMEOUT_S = 1.0
"""Of the reconnecting thread, for connection, encryption and password."""
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 5.0
STEADY_S = 1.0
"""After so long without a failure, the next one counts as the first again."""
SLOW_IN_A_ROW = 3
"""So many late replies in succession are a failure."""

Command = Sequence[bytes | str | int | float]
Pack = Callable[["ConnectionInterface"], Any]
"""Makes what is sent; it knows how the server wants it."""


class RedisLink:
    """One connection, for one thread: a second thread needs a link of its own.

    After a fork the child's link makes its own connection. `failures` counts timeouts and lost connections, `refused`
    the commands that Redis answered with an error (memory full, loading, no permission).
    """

    def __init__(self, url: str, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        """Raises ImportError without redis-py, ValueError for a malformed URL."""
        from redis.connection import ConnectionPool
        from redis.exceptions import RedisError, ResponseError

        self._errors = (RedisError, OSError)
        self._response_error = ResponseError
        # Protocol 2, because it has no notifications that could come between replies.
        self._pool = ConnectionPool.from_url(
            url, protocol=2, socket_timeout=CONNECT_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S
        )
        self._timeout_s = reply_timeout_s
        self._connection: ConnectionInterface | None = None
        self._owed = 0
        self._streak = 0
        self._slow = 0
        self._available_since = 0.0
        self._pid = 0
        self.failures = 0
        self.refused = 0
        self._begin()

    @classmethod
    def from_environment(
        cls, reply_timeout_s: float = REPLY_TIMEOUT_S, variable: str = URL_VARIABLE
    ) -> RedisLink | None:
        """A link to the Redis that the variable names; None if it is unset, or unusable, which is logged."""
        url = os.environ.get(variable)
        if not url:
            return None
        try:
            return cls(url, reply_timeout_s)
        except ImportError:
            log.warning("%s is set, but redis-py is not installed, so it is not used; pip install redis", variable)
        except ValueError as err:
            log.warning("%s is not a Redis URL (%s), so it is not used; write redis://HOST:PORT/0", variable, err)
        return None

    @property
    def available(self) -> bool:
        """Whether Redis answered its last probe, and every call since."""
        return self._connection is not None

    def wait_available(self, timeout_s: float) -> bool:
        """Wait for the connection; False if there is still none. Not for the path of a request."""
        deadline = time.monotonic() + timeout_s
        while not self.available and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.available

    def ask(self, *commands: Command) -> list[Any] | None:
        """One round trip: a reply per command, None for a refused one; None instead of the list without Redis."""
        return self._talk(len(commands), lambda connection: connection.pack_commands(commands), wait=True)

    def ask_packed(self, packed: bytes, n: int) -> list[Any] | None:
        """The same for `n` commands that are in Redis's own form already, which takes most of the time of a batch."""
        return self._talk(n, lambda _: [packed], wait=True)

    def send(self, *commands: Command) -> bool:
        """Send commands without waiting: their replies are read, and refusals counted, with the next call.

        They take effect before anything that the same link asks later. False without Redis.
        """
        return self._talk(len(commands), lambda connection: connection.pack_commands(commands), wait=False) is not None

    def _talk(self, n: int, pack: Pack, *, wait: bool) -> list[Any] | None:
        if self._pid != os.getpid():
            self._begin()
        connection = self._connection
        if connection is None:
            return None
        began = time.monotonic()
        try:
            if wait:
                connection.send_packed_command(pack(connection), check_health=False)
            for _ in range(self._owed):
                self._read(connection)
            self._owed = 0
            if not wait:
                connection.send_packed_command(pack(connection), check_health=False)
                self._owed = n
                return []
            replies = [self._read(connection) for _ in range(n)]
        except self._errors as err:
            self._give_up(connection, type(err).__name__)
            return None
        # The socket's timeout is for each piece of a reply. A single late reply means nothing: this process may itself
        # have waited for a processor.
        self._slow = self._slow + 1 if time.monotonic() - began > self._timeout_s else 0
        if self._slow >= SLOW_IN_A_ROW:
            self._give_up(connection, "late replies")
        return replies

    def _read(self, connection: ConnectionInterface) -> Any:
        try:
            return connection.read_response(disable_decoding=True)
        except self._response_error:
            self.refused += 1
            return None

    def _give_up(self, connection: ConnectionInterface, why: str) -> None:
        """Stop asking; a thread finds out when to ask again."""
        self.failures += 1
        self._connection, self._owed, self._slow = None, 0, 0
        connection.disconnect()
        if time.monotonic() - self._available_since > STEADY_S:
            self._streak = 0
        self._streak += 1
        if self._streak == 2:
            log.warning("Redis does not answer as it should (%s); predictions go on without it", why)
        self._reconnect()

    def _begin(self) -> None:
        """Connect; in a forked process, anew."""
        self._pid = os.getpid()
        self._connection, self._owed = None, 0
        self._reconnect()

    def _reconnect(self) -> None:
        threading.Thread(target=self._restore, name="redis-link", daemon=True).start()

    def _restore(self) -> None:
        """Try until Redis answers."""
        while True:
            if self._streak > 1:
                wait_s = min(FIRST_RETRY_S * 2 ** min(self._streak - 2, 10), LAST_RETRY_S)
                time.sleep(wait_s * random.uniform(0.5, 1))
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            try:
                connection.connect()
                # From here on a batch may be waiting.
                connection.socket_timeout = self._timeout_s
                connection.update_current_socket_timeout(self._timeout_s)
                connection.send_packed_command(connection.pack_commands([("PING",)]), check_health=False)
                connection.read_response()
            except self._errors as err:
                connection.disconnect()
                self._streak += 1
                if self._streak == 2:
                    log.warning("no Redis (%s); predictions go on without it", type(err).__name__)
                continue
            if self._streak > 1:
                log.warning("Redis answers again")
            self._available_since = time.monotonic()
            self._connection = connection
            return
