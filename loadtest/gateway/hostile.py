"""Requests that no honest client sends, and somebody who sends them at a steady pace."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

LOG_LINES = "x\n[METRICS]evil.ms:1|#Level:Model|#type:COUNTER|#hostname:h,1\n[PID]1\nTorch worker started."
"""What TorchServe would take for a worker's own words if it stood in a log line."""
GOOD = {"question": "Which is a tool?", "choices": ["a knife", "a cloud"]}
KNOWN_NAMES = (
    "x-inference-protocol",
    "inference-header-content-length",
    "cache-control",
    "content-type",
    "body",
    "data",
    "explain",
    "url_path",
    "x-fallback-from",
    "x-fallback-stale",
    "x-request-id",
    "x-request-start-ms",
    "x-request-timeout-ms",
    "x-sample",
    "x-shadow-version",
    "x-user-id",
)
"""Headers and parameters that a worker or TorchServe reads; a form field of such a name must not become one."""
VALUES = ("", "1", "-1", "nan", "True", "feedback", "9" * 400, "open-inference", "no-store", "1.0", "\x00", "é\u202e")
JSON, FORM, BOUNDARY = "application/json", "application/x-www-form-urlencoded", "edge"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
BETWEEN_LOOKS_BYTES = 1 << 16
SENDERS = 16
TIMEOUT_S = 60.0
NO_ANSWER = "no answer"
FAILURES = ("500", "502", "503", "504", NO_ANSWER)
"""Answers that say that a server did not cope."""
ABANDONED = "abandoned"
"""Answer to a request that never ends: its sender hangs up."""


@dataclass(frozen=True)
class Hostile:
    """One request. `length` stands in Content-Length: the body's own if None, no such line if empty."""

    kind: str
    body: bytes = json.dumps(GOOD).encode()
    headers: Sequence[tuple[str, str]] = (("Content-Type", JSON),)
    length: str | None = None
    query: str = ""
    method: str = "POST"
    endless: bool = field(default=False, kw_only=True)
    """The server waits for more, so that there is no answer to wait for."""

    def encode(self, host: str, path: str) -> bytes:
        length = str(len(self.body)) if self.length is None else self.length
        counted = [("Content-Length", length)] if length else []
        lines = [f"{name}: {value}" for name, value in [("Host", host), *self.headers, *counted]]
        head = "\r\n".join([f"{self.method} {path}{self.query} HTTP/1.1", *lines, "", ""])
        return head.encode("utf-8", "surrogatepass") + self.body


def hostile_requests() -> list[Hostile]:
    """One or more of every kind."""
    return [
        *json_bodies(),
        *expensive_bodies(),
        *forms(),
        *multiparts(),
        *queries(),
        *headers(),
        *framings(),
        *zipped(),
    ]


def json_bodies() -> Iterator[Hostile]:
    """Bodies that are no JSON, or not the JSON that is wanted."""
    broken: list[bytes] = [
        b"",
        b"{",
        b"\xff" * 1000,
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).encode() * 2,
        b'{"a":' * 20_000,
        b"[" * 50_000,
        b'{"instances": [' * 5_000,
        b'{"question": "\\ud800", "choices": ["a", "b"]}',
        b'{"question": "\xed\xa0\x80", "choices": ["a", "b"]}',
        b'{"question": "x", "choices": ["a", NaN]}',
        b'{"question": "x", "question": "y", "choices": ["a", "b"], "choices": 3}',
        b'{"question": "x", "choices": ["a", "b"], "n": 1e999}',
        b'{"question": "x", "choices": [' + b"9" * 5_000 + b"]}",
        *(text.encode() for text in ("null", "true", "3", '"x"', "[]", "{}", '["a"]', "Infinity", "\x00")),
    ]
    for i, body in enumerate(broken):
        yield Hostile(f"broken JSON {i}", body)
    wrong: list[object] = [
        {"question": 1e308, "choices": [[[]]]},
        {"question": "", "choices": ["", ""]},
        {"question": "x", "choices": ["a"] * 1000},
        {"question": "x", "choices": ["a", "b"], "context": "x " * 11_000},
        {"question": LOG_LINES, "choices": [LOG_LINES, LOG_LINES]},
        {LOG_LINES: LOG_LINES},
        {"question": "\x00\x1b[31m\u202e", "choices": ["\x00", "\u0000\uffff"]},
        {"instances": []},
        {"instances": [GOOD, {"question": LOG_LINES, "choices": 3}] * 20},
        {"instances": {"question": "x"}},
        {"instances": [{"instances": [GOOD]}, {"features": GOOD}, None, [], "x"]},
        {"features": {"features": {"features": GOOD}}},
        {"model": "../../evil", "features": GOOD},
        {"model": LOG_LINES, **GOOD},
        {"model": ["mcqa"], **GOOD},
        {"model": "mcqa", "features": [GOOD]},
        {"prediction_id": LOG_LINES, "model": "mcqa", "label": [1]},
        {**GOOD, "explain": {"method": "shapley", "samples": 10**12}},
        {"inputs": [{"name": "question", "shape": [10**9], "datatype": "BYTES", "data": ["x"]}]},
        {"inputs": [{"name": "choices", "shape": [-1, 2], "datatype": "FP64", "data": [[[1]]]}] * 50},
    ]
    for i, content in enumerate(wrong):
        yield Hostile(f"wrong JSON {i}", json.dumps(content).encode())


def expensive_bodies() -> Iterator[Hostile]:
    """Valid, or nearly so, and as much work as one request can bring."""
    long = {"question": "x " * 9000, "choices": ["y " * 9000, "z"] * 8}
    yield Hostile("a long question", json.dumps(long).encode())
    yield Hostile("many instances", json.dumps({"instances": [GOOD] * 128}).encode())
    yield Hostile("too many instances", json.dumps({"instances": [GOOD] * 20_000}).encode())
    yield Hostile("large instances", json.dumps({"instances": [long] * 4}).encode())
    yield Hostile("no blanks", json.dumps({"question": "a" * 19_000, "choices": ["中" * 9000, "🙂" * 9000]}).encode())
    yield Hostile("a huge body", json.dumps(GOOD).encode() + b" " * 10_000_000)


def forms() -> Iterator[Hostile]:
    """URL-encoded forms, whose fields TorchServe puts among the headers."""
    kind = (("Content-Type", FORM),)
    for name in KNOWN_NAMES:
        for value in VALUES:
            yield Hostile(f"form field {name}", urlencode({name: value}).encode(), kind)
        yield Hostile(f"form field {name} in capitals", urlencode({name.upper(): "1"}).encode(), kind)
        yield Hostile(f"form field {name} twice", f"{name}=1&{name}=2&body=x".encode(), kind)
    every = dict.fromkeys(KNOWN_NAMES, "1")
    yield Hostile("form of every field", urlencode(every).encode(), kind)
    yield Hostile("form with a good body", urlencode({**every, "body": json.dumps(GOOD)}).encode(), kind)
    yield Hostile("form of 5,000 fields", urlencode({f"f{i}": "x" for i in range(5000)}).encode(), kind)
    yield Hostile("form of log lines", urlencode({LOG_LINES: LOG_LINES}).encode(), kind)
    yield Hostile("form that is JSON", json.dumps(GOOD).encode(), kind)
    yield Hostile("form of broken escapes", b"%zz=%&=&&&body=%ff%fe&data=%", kind)


def multiparts() -> Iterator[Hostile]:
    """Forms in parts, with and without files."""
    kind = (("Content-Type", MULTIPART),)
    good = json.dumps(GOOD)
    for name in KNOWN_NAMES:
        yield Hostile(f"part {name}", parts((f'name="{name}"', "1")), kind)
        yield Hostile(f"file {name}", parts((f'name="{name}"; filename="{name}.bin"', good)), kind)
        yield Hostile(f"part {name} beside a body", parts((f'name="{name}"', "1"), ('name="body"', good)), kind)
    yield Hostile("file with a path", parts(('name="data"; filename="../../../../etc/passwd"', good)), kind)
    yield Hostile("a large file", parts(('name="data"; filename="x"', "x" * 500_000)), kind)
    yield Hostile("1,000 parts", parts(*[(f'name="p{i}"', "x") for i in range(1000)]), kind)
    yield Hostile("part without a name", parts(("", good), ('name=""', good), ('filename="x"', good)), kind)
    yield Hostile("part of log lines", parts(('name="body"', LOG_LINES)), kind)
    yield Hostile("parts that never end", parts(('name="body"', good))[:-10], kind)
    yield Hostile(
        "multipart without a boundary", parts(('name="body"', good)), (("Content-Type", "multipart/form-data"),)
    )
    yield Hostile("multipart that is JSON", good.encode(), kind)


def parts(*fields: tuple[str, str]) -> bytes:
    """A multipart body; each field is what follows `form-data; ` in its head, and its content."""
    made = [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n{text}\r\n" for head, text in fields]
    return ("".join(made) + f"--{BOUNDARY}--\r\n").encode()


def queries() -> Iterator[Hostile]:
    """Parameters in the path, which TorchServe hands to the worker as well."""
    for name in KNOWN_NAMES:
        yield Hostile(f"query {name}", query=f"?{name}=1")
        yield Hostile(f"query {name} three times", query=f"?{name}=&{name}=%00&{name}=" + "9" * 300)
    yield Hostile("a long query", query="?x=" + "y" * 3000)
    yield Hostile("query of log lines", query="?" + urlencode({LOG_LINES: LOG_LINES}))
    yield Hostile("query of broken escapes", query="?%zz=%&=&&body=%ff")


def headers() -> Iterator[Hostile]:
    """A good question under headers that it should not come with."""
    for name in KNOWN_NAMES:
        for value in (*VALUES[:-2], "x" * 3000, "\u00e9"):
            yield Hostile(f"header {name}", headers=(("Content-Type", JSON), (name, value)))
        for spelled in (name.upper(), name.title()):
            yield Hostile(f"header {spelled}", headers=(("Content-Type", JSON), (spelled, "1"), (name, "2")))
    for value in ("", "text/plain", "image/png", "application/json; charset=utf-16", "a/b; c=" + "d" * 2000, "\\/;,="):
        yield Hostile("content type", headers=(("Content-Type", value),))
    yield Hostile("a huge header", headers=(("x-huge", "x" * 200_000),))
    yield Hostile("1,000 headers", headers=[(f"x-{i}", "y") for i in range(1000)])
    for name in ("x y", "x\x00", "x_y", "", ":path", "é", "x\tz", "[METRICS]evil.ms"):
        yield Hostile(f"header name {name!r}", headers=((name, "1"),))


def framings() -> Iterator[Hostile]:
    """What breaks HTTP itself."""
    yield Hostile("length too small", length="5")
    yield Hostile("length too large", length="5000", endless=True)
    yield Hostile("length without a body", b"", length="100000", endless=True)
    for length in ("-1", "1e3", "99999999999999999999", "0x10", "7, 8"):
        yield Hostile(f"length {length}", length=length)
    yield Hostile("no length", length="")
    yield Hostile("two lengths", headers=(("Content-Length", "3"),))
    chunked = (("Content-Type", JSON), ("Transfer-Encoding", "chunked"))
    yield Hostile("chunks and a length", headers=chunked)
    yield Hostile("broken chunks", b"zz\r\nx\r\n0\r\n\r\n", chunked, "")
    yield Hostile("endless chunks", b'5\r\n{"a":\r\n' * 100, chunked, "", endless=True)
    yield Hostile("a huge chunk", b"fffffffffffffff\r\nx", chunked, "", endless=True)
    yield Hostile("unknown transfer", headers=(("Transfer-Encoding", "chunked, identity"),), length="")
    yield Hostile("waiting for 100", headers=(("Expect", "100-continue"), ("Content-Type", JSON)))
    yield Hostile("waiting for the moon", headers=(("Expect", "the-moon"),))
    yield Hostile(
        "upgrade", headers=(("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", ""))
    )
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "POST\x00", "post", "X" * 2000):
        yield Hostile(f"method {method[:10]!r}", method=method)
    yield Hostile("no HTTP", b"\x16\x03\x01\x02\x00" * 100, method="\x00\x01\x02", length="")


def zipped() -> Iterator[Hostile]:
    """Bodies in encodings, right and wrong."""
    good = json.dumps(GOOD).encode()
    for encoding in ("gzip", "GZIP", "deflate", "br", "gzip, gzip", "nonsense", ""):
        said = (("Content-Type", JSON), ("Content-Encoding", encoding))
        yield Hostile(f"encoding {encoding}", gzip.compress(good), said)
        yield Hostile(f"encoding {encoding}, but plain", good, said)
    yield Hostile(
        "a gzip bomb", gzip.compress(b" " * 50_000_000), (("Content-Type", JSON), ("Content-Encoding", "gzip"))
    )
    yield Hostile("half a gzip", gzip.compress(good)[:20], (("Content-Type", JSON), ("Content-Encoding", "gzip")))


@dataclass
class Attack:
    """What hostile requests were answered: how many by each code, and on which kinds a server failed, and how."""

    answers: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, answer: str, kind: str) -> None:
        """Called by every sender's thread."""
        with self._lock:
            self.answers[answer] += 1
            if answer in FAILURES:
                self.failed[f"{answer} {kind}"] += 1


@contextmanager
def attacked(urls: Sequence[str], count: int, seconds: float) -> Iterator[Attack]:
    """`count` hostile requests, evenly over `seconds`, to these addresses in turn."""
    sent, stop, attack = hostile_requests(), threading.Event(), Attack()
    started = time.monotonic()

    def send(number: int) -> None:
        if stop.wait(max(0.0, started + seconds * number / count - time.monotonic())):
            return
        hostile, url = sent[number % len(sent)], urls[number // len(sent) % len(urls)]
        attack.count(answer_to(hostile, url), hostile.kind)

    with ThreadPoolExecutor(SENDERS) as pool:
        under_way = [pool.submit(send, number) for number in range(count)]
        try:
            yield attack
        except BaseException:
            stop.set()
            raise
        for each in under_way:
            each.result()


def answer_to(hostile: Hostile, url: str) -> str:
    """The answer's code, or what came instead of one."""
    parts = urlsplit(url)
    request = memoryview(hostile.encode(parts.netloc, parts.path or "/"))
    data = b""
    try:
        with socket.create_connection((parts.hostname, parts.port), TIMEOUT_S) as connection:
            try:
                for start in range(0, len(request), BETWEEN_LOOKS_BYTES):
                    connection.sendall(request[start : start + BETWEEN_LOOKS_BYTES])
            except OSError:
                pass  # a server that refuses a large request need not read it, and may have answered
            if hostile.endless:
                return ABANDONED
            while len(data) < len("HTTP/1.1 200") and (more := connection.recv(4096)):
                data += more
    except TimeoutError:
        return NO_ANSWER
    except OSError:
        pass
    return data[9:12].decode("ascii", "replace") if data.startswith(b"HTTP/1.") else "closed"
