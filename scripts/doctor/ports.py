"""The ports that `marctl up` opens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from marctl.core.errors import UserError
from marctl.doctor.finding import Finding
from marctl.stack.ports import is_free
from marctl.stack.state import State
from marctl.stack.torchserve import find_servers


def ports(wanted: Mapping[str, int], state: State) -> Iterator[Finding]:
    """`wanted`: port by the option of `marctl up` that names it. Those of this folder's own stack are no fault."""
    own = own_ports(state)
    for option, port in wanted.items():
        if port in own:
            yield Finding("ports", "ok", f"{port} is this stack's own, which runs")
        elif is_free(port):
            yield Finding("ports", "ok", f"{port} is free")
        else:
            cure = f"end that, or serve elsewhere: marctl up {option} {next_free(port)}"
            yield Finding("ports", "error", f"{port} is taken by another program", cure)


def own_ports(state: State) -> set[int]:
    """Where the stack of this folder listens; none if it does not run."""
    try:
        running = state.running()
    except UserError:
        return set()
    if running is None or not find_servers(state):
        return set()
    return {running.ports.inference, running.ports.management, running.ports.metrics, running.ports.gateway}


def next_free(port: int) -> int:
    """A free one above it, for a suggestion; 0, which means any, if there is none."""
    return next((each for each in range(port + 1, min(port + 1000, 65536)) if is_free(each)), 0)
