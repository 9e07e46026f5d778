"""Requests that no honest client sends, and somebody who sends them at a steady pace."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import requests

LOG_LINES = "x\n[METRICS]evil.ms:1|#Level:Model|#type:COUNTER|#hostname:h,1\n[PID]1\nTorch worker started."
"""What TorchServe would take for a worker's own words if it stood in a log line."""
GOOD = {"question": "Which is a tool?", "choices": ["a knife", "a cloud"]}
SENDERS = 8
TIMEOUT_S = 60.0


def hostile_bodies() -> list[bytes]:
    return [
        b"{",
        b"\xff" * 1000,
        b'{"a":' * 20_000,
        b"[" * 50_000,
        b'{"question": "\\ud800", "choices": ["a", "b"]}',
        b'{"question": "x", "choices": ["a", NaN]}',
        b'{"question": "x", "choices": ["a", "b"]}' + b" " * 10_000_000,
        json.dumps({"question": 1e308, "choices": [[[]]]}).encode(),
        json.dumps({"question": "x", "choices": ["a"] * 1000}).encode(),
        json.dumps({"question": LOG_LINES, "choices": [LOG_LINES, LOG_LINES]}).encode(),
        json.dumps({LOG_LINES: LOG_LINES}).encode(),
        json.dumps({"question": "\x00\x1b[31m\u202e", "choices": ["\x00", "\u0000\uffff"]}).encode(),
        json.dumps({"question": "x " * 9000, "choices": ["y " * 9000, "z"] * 8}).encode(),
        json.dumps({"instances": [GOOD, {"question": LOG_LINES, "choices": 3}] * 20}).encode(),
    ]


@contextmanager
def attacked(urls: Sequence[str], count: int, seconds: float) -> Iterator[Counter[str]]:
    """`count` hostile requests, evenly over `seconds`, to these addresses in turn; counts what they were answered."""
    bodies, stop, found = hostile_bodies(), threading.Event(), Counter[str]()
    started = time.monotonic()

    def send(number: int) -> str:
        if stop.wait(max(0.0, started + seconds * number / count - time.monotonic())):
            return "not sent"
        body, url = bodies[number % len(bodies)], urls[number // len(bodies) % len(urls)]
        try:
            answer = requests.post(url, body, headers={"Content-Type": "application/json"}, timeout=TIMEOUT_S)
        except requests.ConnectionError:  # a server that refuses a large body need not read it
            return "closed"
        return str(answer.status_code)

    with ThreadPoolExecutor(SENDERS) as pool:
        answers = [pool.submit(send, number) for number in range(count)]
        try:
            yield found
        except BaseException:
            stop.set()
            raise
        found.update(answer.result() for answer in answers)
