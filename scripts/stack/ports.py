"""The ports of one stack: all loopback, checked before anything starts."""

from __future__ import annotations

import socket

import msgspec
from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.http import HOST

GRPC_FIRST = 7070
ADMIN_FIRST = 9901
OPTIONS = {
    "inference": "--port",
    "management": "--management-port",
    "metrics": "--metrics-port",
    "gateway": "--gateway-port",
}
"""Of `marctl up`: these ports clients and operators know; the others are the stack's own business, and may move."""
WORKERS_FIRST, WORKERS_STEP = 9000, 100


class PortTaken(UserError):
    """Something else listens where this stack should."""


class Ports(Struct, frozen=True):
    """`workers` is the first of a range. Workers listen on sockets in the stack's own temp folder, named by these
    numbers; only where TorchServe has no native sockets are they ports."""

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int
    workers: int
    gateway: int
    admin: int
    torchserve_metrics: int
    """TorchServe's own page of figures; that at `metrics` holds the workers', too (scripts/stack/metrics_page.py)."""

    @property
    def torchserve(self) -> dict[str, str]:
        """The URLs of TorchServe's HTTP ports, and of the page that holds its figures and the workers'."""
        named = {"inference": self.inference, "management": self.management, "metrics": self.metrics}
        return {name: f"http://{HOST}:{port}" for name, port in named.items()}

    def refuse_taken(self, *names: str, host: str = HOST) -> None:
        """Raise PortTaken if somebody listens on one of these by now; asked right before a start."""
        for name in names:
            port = getattr(self, name)
            if not is_free(port, host):
                cure = f"; choose another one with {OPTIONS[name]}, or 0 for any" if name in OPTIONS else ""
                raise PortTaken(
                    f"port {port} on {host}, kept for {name.replace('_', ' ')}, is taken by another program{cure}"
                )

    def moved(self, *names: str) -> Ports:
        """With a free port in place of each of these that somebody has taken since it was chosen."""
        taken = set(msgspec.structs.asdict(self).values())
        changes = {}
        for name in names:
            if not is_free(port := getattr(self, name)):
                changes[name] = claim(taken, port)
        return msgspec.structs.replace(self, **changes)


def choose_ports(inference: int, management: int, metrics: int, gateway: int = 0) -> Ports:
    """Operators choose these four, 0 for any free one; the rest is found. Raises PortTaken or UserError."""
    asked = dict(zip(OPTIONS.values(), (inference, management, metrics, gateway), strict=True))
    fixed = [port for port in asked.values() if port]
    if len(fixed) != len(set(fixed)):
        raise UserError("the ports must differ: " + ", ".join(f"{name} {port}" for name, port in asked.items()))
    for option, port in asked.items():
        if port and not is_free(port):
            raise PortTaken(f"port {port} on {HOST} is taken by another program; choose another one with {option}")
    taken = set(fixed)
    first, second, third, opened = (port or claim(taken, 0) for port in asked.values())
    # Who wants any port starts several stacks at a time, perhaps, which would all find the same one from 7070 on.
    grpc = [claim(taken, GRPC_FIRST if inference else 0) for _ in range(2)]
    admin = claim(taken, ADMIN_FIRST if gateway else 0)
    figures = claim(taken, 0)
    return Ports(first, second, third, grpc[0], grpc[1], free_range(), opened, admin, figures)


def claim(taken: set[int], first: int) -> int:
    """A free port from `first` on, or any for 0; added to `taken`."""
    port = first or free_port()
    while port in taken or not is_free(port):
        port = port + 1 if first else free_port()
    taken.add(port)
    return port


def is_free(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe:
        # Without it, a port that a stopped server used a minute ago counts as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def free_range() -> int:
    """The first port of a range that nobody listens in."""
    for first in range(WORKERS_FIRST, 30000, WORKERS_STEP):
        if all(is_free(port) for port in range(first, first + WORKERS_STEP)):
            return first
    return WORKERS_FIRST
