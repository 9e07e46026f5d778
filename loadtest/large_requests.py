"""What the neighbours of a client feel that sends the largest allowed requests as fast as it can.

    python -m loadtest.large_requests http://127.0.0.1:8000 mcqa 2.0 --seconds 20 --connections 1 8 32

Neighbours send one question each, at 20 a second, on a schedule of their own (latency counts from the time a request
was due). The other client sends its requests back to back over some connections. Both ask distinct questions.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import requests

from loadtest.machine import describe
from loadtest.questions import bodies

PATIENCE_S = 60.0
RATE = 20.0
JSON = {"content-type": "application/json"}


class Asker:
    """Sends bodies to one version. Never through a proxy."""

    def __init__(self, address: str, model: str, version: str) -> None:
        self.url = f"{address}/predictions/{model}/{version}"
        self._local = threading.local()

    def send(self, body: bytes) -> int:
        """The answer's code; 0 for none."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.trust_env = False
        try:
            code: int = self._local.session.post(self.url, data=body, headers=JSON, timeout=PATIENCE_S).status_code
        except requests.RequestException:
            return 0
        return code


def large_body(number: int, instances: int) -> bytes:
    """Questions of sixteen long choices, like no other request's."""
    words = " ".join(f"word{number}x{i}" for i in range(30))
    question = {"question": f"Which {number}? {words}", "choices": [f"{words} {i}" for i in range(16)]}
    whole = {"instances": [question | {"context": f"{place} {words}"} for place in range(instances)]}
    return json.dumps(whole).encode()


def largest_allowed(asker: Asker) -> int:
    """Instances of the largest request that is not refused as too large."""
    for instances in (32, 16, 8, 4, 2, 1):
        if asker.send(large_body(0, instances)) != 413:
            return instances
    return 0


def measure(asker: Asker, seconds: float, connections: int, instances: int) -> dict[str, object]:
    """Codes of both clients, and the neighbours' latency in milliseconds."""
    questions, stop = bodies(seed=connections), threading.Event()
    large: Counter[int] = Counter()
    codes: Counter[int] = Counter()
    waits: list[float] = []

    def attack(place: int) -> None:
        number = place
        while not stop.is_set():
            number += connections
            large[asker.send(large_body(number, instances))] += 1

    def ask(due: float, body: bytes) -> None:
        codes[asker.send(body)] += 1
        waits.append(1000 * (time.monotonic() - due))

    with ThreadPoolExecutor(connections + 256) as pool:
        for place in range(connections):
            pool.submit(attack, place)
        started = time.monotonic()
        for i in range(int(seconds * RATE)):
            due = started + i / RATE
            time.sleep(max(due - time.monotonic(), 0))
            pool.submit(ask, due, next(questions))
        stop.set()
    waits.sort()
    return {
        "connections": connections,
        "neighbours": dict(codes),
        "p50_ms": round(waits[len(waits) // 2], 1),
        "p99_ms": round(waits[int(len(waits) * 0.99)], 1),
        "max_ms": round(waits[-1], 1),
        "large": dict(large),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("version")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[0, 1, 8, 32])
    given = parser.parse_args(arguments)
    asker = Asker(given.address, given.model, given.version)
    instances = largest_allowed(asker)
    print(json.dumps({"machine": describe(), "largest_request": f"{instances} x 16 choices"}))
    for connections in given.connections:
        print(json.dumps(measure(asker, given.seconds, connections, instances)), flush=True)


if __name__ == "__main__":
    main()
