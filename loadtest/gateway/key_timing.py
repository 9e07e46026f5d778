"""Whether the time that a wrong API key takes tells how much of it was right.

Wrong keys are asked in turn, in random order, on one connection: they share nothing with the right key, half of it, or
all but its last character. Their times differ by less than chance if nothing can be learned.

    python -m loadtest.gateway.key_timing --requests 20000
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.gateway.constant import constant_server
from marctl.gateway.envoy import Envoy
from marctl.gateway.policies import Traffic
from marctl.gateway.settings import GatewaySettings
from marctl.stack.ports import free_port

KEY = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=64))
SHARED = {"nothing": 0, "half": len(KEY) // 2, "all but the last": len(KEY) - 1}
"""Characters at the beginning that a wrong key shares with the right one."""
SHUFFLES = 400


def wrong_key(shared: int, draw: random.Random) -> str:
    """Of the same length; the first character after those that are shared is not the right one."""
    rest = draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=len(KEY) - shared - 1)
    return KEY[:shared] + ("_" + "".join(rest))


def measure(gateway: str, requests: int) -> dict[str, list[float]]:
    """Microseconds of each request, by what its key shares; the first tenth, while all warms up, is left out."""
    draw, found = random.Random(2), defaultdict(list)
    order = [kind for _ in range(requests) for kind in draw.sample(list(SHARED), len(SHARED))]
    # Made before the first one is sent: what a key's making costs the client must not show in its time.
    prepared = [(kind, request_with(wrong_key(SHARED[kind], draw))) for kind in order]
    address = urlsplit(gateway)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for kind, request in prepared:
            found[kind].append(ask(connection, request))
    return {kind: times[requests // 10 :] for kind, times in found.items()}


def request_with(key: str) -> bytes:
    return f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n\r\n".encode()


def ask(connection: socket.socket, request: bytes) -> float:
    """One request that is refused; returns its microseconds."""
    began = time.perf_counter_ns()
    connection.sendall(request)
    answer = connection.recv(65536)
    took = (time.perf_counter_ns() - began) / 1000
    if not answer.startswith(b"HTTP/1.1 401"):
        raise RuntimeError(f"expected a 401, got {answer[:100]!r}")
    return took


def chance(one: Sequence[float], other: Sequence[float]) -> float:
    """Share of random divisions of all the times whose medians differ at least as much: a permutation test."""
    draw, together = random.Random(3), [*one, *other]
    seen = abs(statistics.median(one) - statistics.median(other))
    larger = 0
    for _ in range(SHUFFLES):
        draw.shuffle(together)
        halves = together[: len(one)], together[len(one) :]
        larger += abs(statistics.median(halves[0]) - statistics.median(halves[1])) >= seen
    return larger / SHUFFLES


def table(found: Mapping[str, Sequence[float]]) -> str:
    nothing = found["nothing"]
    lines = ["| the wrong key shares | median, µs | difference, µs | by chance |", "|---|---|---|---|"]
    for kind, times in found.items():
        difference = statistics.median(times) - statistics.median(nothing)
        compared = "" if kind == "nothing" else f"{difference:+.2f} | {chance(nothing, times):.0%}"
        lines.append(f"| {kind} | {statistics.median(times):.1f} | {compared or ' | '} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.gateway.key_timing", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each kind")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, constant_server(Path(work)) as upstream:
        urls = dict.fromkeys(("inference", "management", "metrics"), upstream)
        settings = GatewaySettings(probe_port=free_port(), api_keys={"ann": KEY})
        folder = Path(work, "gateway")
        envoy = Envoy(folder, Path(work, "gateway.log"), urls, free_port(), free_port(), settings)
        envoy.start({"mcqa": ["1.0"]}, {"mcqa": Traffic(split={"1.0": 1})})
        try:
            found = measure(envoy.address, asked.requests)
        finally:
            envoy.stop()
    print(table({kind: found[kind] for kind in SHARED}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
