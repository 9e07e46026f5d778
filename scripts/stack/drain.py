"""Takes a stack out of service for those who spread requests over several, and puts it back.

It answers whatever comes meanwhile, and goes on serving until somebody stops it.
"""

from __future__ import annotations

import time

from marctl.gateway.envoy import Envoy
from marctl.stack.look import NotRunning
from marctl.stack.operations import NoGateway
from marctl.stack.state import State


def drain(state: State, seconds: float) -> None:
    """Readiness turns 503 and connections end with their next answer; then wait for so long.

    In that time, load balancers should have noticed. Raises NotRunning, NoGateway or GatewayFailed.
    """
    gateway_of(state).drain()
    time.sleep(seconds)


def undrain(state: State) -> None:
    """Back in service. Raises NotRunning, NoGateway or GatewayFailed."""
    gateway_of(state).undrain()


def gateway_of(state: State) -> Envoy:
    """Of the stack that runs, whatever has become of TorchServe. Raises NotRunning or NoGateway."""
    running = state.running()
    if running is None:
        raise NotRunning(f"nothing runs in {state.folder}, so there is nothing to drain")
    if running.gateway is None:
        raise NoGateway("this stack has no gateway to drain; it was started with --no-gateway")
    return state.envoy(running.ports, state.gateway_settings())
