"""Plain HTTP on this machine."""

from __future__ import annotations

import requests

HOST = "127.0.0.1"


def local_session() -> requests.Session:
    """For loopback: a proxy or a netrc file of the environment must not come between."""
    session = requests.Session()
    session.trust_env = False
    return session
