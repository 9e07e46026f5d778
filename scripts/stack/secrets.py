"""The gateway's keys and certificate, which the operator may change in their files at any time."""

from __future__ import annotations

import time

from marctl.core.errors import UserError
from marctl.core.watched import Watched
from marctl.stack.journal import Journal
from marctl.stack.servers import Servers

SECRETS = "the gateway's keys and certificate"
LOOK_S = 0.5


class Secrets:
    """Takes over what was changed; what cannot be used leaves the former ones in force, and is a condition."""

    def __init__(self, servers: Servers, journal: Journal) -> None:
        self._servers = servers
        self._journal = journal
        self._watched = Watched([])
        self._looked = 0.0

    def renewed(self) -> bool:
        """Look, at most each half second; whether there are others by now."""
        if time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        files = self._servers.secret_files()
        if files != self._watched.paths:
            self._watched = Watched(files)
        if not files or not self._watched.changed():
            return False
        try:
            self._servers.renew_secrets()
        except UserError as err:
            self._journal.warn(SECRETS, err)
            return False
        self._journal.well(SECRETS)
        return True
