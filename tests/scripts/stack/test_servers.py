"""A stack that starts beside another one takes other ports of its own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from marctl.core.http import HOST
from marctl.core.process import Identity, StartFailed
from marctl.stack.servers import Request, Servers
from marctl.stack.state import State


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    state = State(tmp_path)
    state.create()
    return Servers(state, Request("recipes", str(tmp_path), 0, 0, 0, gateway_port=0), lambda _: None)


def test_a_server_that_loses_its_own_port_while_it_starts_is_started_on_another(servers: Servers) -> None:
    """As when two stacks have chosen one port, and the other one's server was a moment faster."""
    tried = []
    identity = Identity.of(os.getpid())
    assert identity is not None
    with socket.socket() as other:

        def start() -> Identity:
            tried.append(servers.running.ports.admin)
            if len(tried) == 1:
                other.bind((HOST, tried[0]))
                other.listen()
                raise StartFailed(f"cannot bind '{HOST}:{tried[0]}'")
            return identity

        assert servers._start(("admin",), start) == identity
    assert len(set(tried)) == 2
    assert servers.state.running() == servers.running
    assert servers.running.ports.admin == tried[1]


def test_a_server_that_fails_on_free_ports_is_not_started_again(servers: Servers) -> None:
    tried = []

    def start() -> Identity:
        tried.append(1)
        raise StartFailed("no memory")

    with pytest.raises(StartFailed):
        servers._start(("admin",), start)
    assert len(tried) == 1
