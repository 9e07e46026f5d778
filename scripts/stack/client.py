"""How this machine's own commands ask a running stack: through the gateway, as clients do."""

from __future__ import annotations

import warnings

import requests
from urllib3.exceptions import InsecureRequestWarning

from marctl.core.http import local_session
from marctl.stack.state import State


def client_session(state: State) -> requests.Session:
    """A session that the gateway lets in, with one of its keys if it asks for any."""
    session = local_session()
    settings = state.gateway_settings()
    if settings.api_keys:
        session.headers["x-api-key"] = settings.credentials[0][1]
    if settings.tls:
        # The certificate names the host that clients know, not this machine's loopback address.
        session.verify = False
        warnings.simplefilter("ignore", InsecureRequestWarning)
    return session
