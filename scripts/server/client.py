"""How this machine's own commands ask a running stack: through the door, as clients do."""

from __future__ import annotations

import warnings

import requests
from urllib3.exceptions import InsecureRequestWarning

from scripts.server.management import local_session
from scripts.server.state import Running


def client_session(running: Running) -> requests.Session:
    """A session that the door lets in, with one of its keys if it asks for any."""
    session = local_session()
    settings = running.door.settings if running.door else None
    if settings and settings.api_keys:
        session.headers["x-api-key"] = next(iter(settings.api_keys.values()))
    if settings and settings.tls:
        # The certificate names the host that clients know, not this machine's loopback address.
        session.verify = False
        warnings.simplefilter("ignore", InsecureRequestWarning)
    return session
