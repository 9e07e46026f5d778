"""Where a document stands that several nodes follow, and where each of them tells what it observes.

A YAML file, such as a mounted ConfigMap:
    PLACE                   the document, in the form of `marctl state show`
    PLACE.nodes/NODE.json   each node's report, where that folder can be written

Redis, by a URL such as redis://HOST:6379/0#NAME; without a NAME it is "stack":
    marctl:document:NAME    a string, the same YAML
    marctl:nodes:NAME       a hash, each node's report by its name
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
import redis
from msgspec import Struct
from redis.backoff import NoBackoff
from redis.retry import Retry

from marctl.core.errors import UserError
from marctl.core.files import alone, write_atomically
from marctl.core.yaml_text import MOST_BYTES
from marctl.stack import document
from marctl.stack.document import Declared, DocumentInvalid
from marctl.stack.history import Conflict
from marctl.stack.redis_server import shown
from marctl.stack.report import Condition

SCHEMES = ("redis://", "rediss://", "unix://")
TIMEOUT_S = 0.5
"""For one answer of Redis."""
SETTLE_S = 0.2
"""A file that is written in place is read once it has not changed for so long."""
FORGET_S = 86400.0
"""A node that has not reported for so long is taken off the list."""
DOCUMENT, NODES = "marctl:document:", "marctl:nodes:"
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")


class PlaceAway(UserError):
    """No document can be had from the place, or none can be written there."""


class Report(Struct, frozen=True, omit_defaults=True):
    """What a node observes. `time`: seconds since 1970, by the place's clock where it has one."""

    node: str
    time: float
    digest: str = ""
    """sha256 of the content that it follows; empty before the first one."""
    revision: int | None = None
    """The revision that the content names."""
    in_force: bool = False
    observed: int = 0
    """The newest revision of its own history that its reconciler has answered."""
    conditions: list[Condition] = []


class Place(Protocol):
    """`name` is for people, without a password; `text` is what `place_of` reads."""

    name: str
    text: str

    def read(self) -> bytes:
        """The document's text. Raises PlaceAway."""

    def replace(self, expected: bytes | None, content: bytes) -> None:
        """Write the text if the place still holds `expected`, None for nothing. Raises Conflict or PlaceAway."""

    def peek(self) -> bytes | None:
        """The text, or None where the place holds none. Raises PlaceAway."""

    def report(self, report: Report) -> None:
        """Tell it to the other nodes, with the time of now. Raises PlaceAway."""

    def reports(self) -> list[tuple[Report, float]]:
        """Every node's last report and its age in seconds. Raises PlaceAway."""


def place_of(text: str) -> Place:
    """A file's path or a Redis URL; raises UserError for a malformed URL."""
    return RedisPlace(text) if text.startswith(SCHEMES) else FilePlace(Path(text))


def absolute(text: str) -> str:
    """The same place from any working folder. Links are kept: a mounted ConfigMap changes by swapping one."""
    return text if text.startswith(SCHEMES) else os.path.abspath(text)


class FilePlace:
    """A file. It is opened only after its modification time, size or inode has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = self.text = str(path)
        self._nodes = path.with_name(f"{path.name}.nodes")
        self._stamp: tuple[int, ...] = ()
        self._content = b""

    def read(self) -> bytes:
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._refuse_large(stamp)
                content = self.path.read_bytes()
                if self._stamp[:2] in ((), stamp[:2]):  # not replaced by another file, so perhaps half written
                    time.sleep(SETTLE_S)
                    if self._look() != stamp:
                        return self._former()
                self._stamp, self._content = stamp, content
        except OSError as err:
            self._stamp = ()
            raise PlaceAway(f"{self.path} cannot be read: {err.strerror or err}; put the document there") from err
        return self._content

    def _former(self) -> bytes:
        """What it held before somebody began to write it in place."""
        if not self._stamp:
            raise PlaceAway(f"{self.path} is being written")
        return self._content

    def _look(self) -> tuple[int, ...]:
        found = self.path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _refuse_large(self, stamp: tuple[int, ...]) -> None:
        if stamp[2] > MOST_BYTES:
            raise PlaceAway(f"{self.path} has {stamp[2]} bytes; at most {MOST_BYTES} are read")

    def peek(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise PlaceAway(f"{self.path} cannot be read: {err.strerror or err}") from err

    def replace(self, expected: bytes | None, content: bytes) -> None:
        target = self.path.resolve()
        cure = "change it where it comes from, such as the ConfigMap"
        try:
            with alone(target.parent):
                if self.peek() != expected:
                    raise Conflict(f"{self.path} was changed meanwhile; look (marctl state show --from) and try again")
                mode = target.stat().st_mode & 0o777 if expected is not None else 0o644
                if expected is not None and not os.access(target, os.W_OK):
                    raise PlaceAway(f"{self.path} is not writable; {cure}")
                write_atomically(target, content, mode=mode)
        except OSError as err:
            raise PlaceAway(f"{self.path} cannot be written: {err.strerror or err}; {cure}") from err

    def report(self, report: Report) -> None:
        """Renamed into place without a sync: a report that a power failure takes is written again in seconds."""
        path = self._nodes / f"{report.node}.json"
        partial = path.with_name(f".{path.name}.partial")
        try:
            self._nodes.mkdir(exist_ok=True)
            partial.write_bytes(msgspec.json.encode(msgspec.structs.replace(report, time=time.time())))
            partial.replace(path)
        except OSError as err:
            raise PlaceAway(f"{path} cannot be written: {err.strerror or err}") from err

    def reports(self) -> list[tuple[Report, float]]:
        now = time.time()
        found = []
        for path in sorted(self._nodes.glob("[!.]*.json")):
            with suppress(OSError, msgspec.DecodeError):
                report = msgspec.json.decode(path.read_bytes(), type=Report)
                found.append((report, max(now - report.time, 0.0)))
        return [(report, age) for report, age in found if age < FORGET_S]


class RedisPlace:
    """Keys in Redis."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = shown(text)
        url, _, fragment = text.partition("#")
        stack = unquote(fragment) or "stack"
        self._document, self._nodes = DOCUMENT + stack, NODES + stack
        # A second try would double the time that an answer takes at most; the next look is the second try.
        options: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
        try:
            self._client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        except ValueError as err:
            raise UserError(f"{self.name} is no Redis URL ({err}); write redis://HOST:PORT/0#NAME") from err

    def read(self) -> bytes:
        content = self.peek()
        if content is None:
            raise PlaceAway(f"{self.name} has no key {self._document}; put the document there")
        if len(content) > MOST_BYTES:
            raise PlaceAway(f"{self._document} has {len(content)} bytes; at most {MOST_BYTES} are read")
        return content

    def peek(self) -> bytes | None:
        with self._asking():
            content: Any = self._client.get(self._document)
        return None if content is None else bytes(content)

    def replace(self, expected: bytes | None, content: bytes) -> None:
        changed = f"{self.name} was changed meanwhile; look (marctl state show --from) and try again"
        with self._asking(), self._client.pipeline() as pipe:
            try:
                pipe.watch(self._document)
                if pipe.get(self._document) != expected:
                    raise Conflict(changed)
                pipe.multi()
                pipe.set(self._document, content)
                pipe.execute()
            except redis.WatchError as err:
                raise Conflict(changed) from err

    def report(self, report: Report) -> None:
        with self._asking():
            content = msgspec.json.encode(msgspec.structs.replace(report, time=self._now()))
            with self._client.pipeline(transaction=False) as pipe:
                pipe.hset(self._nodes, report.node, content)
                pipe.expire(self._nodes, int(FORGET_S))
                pipe.execute()

    def reports(self) -> list[tuple[Report, float]]:
        with self._asking():
            now = self._now()
            fields: Any = self._client.hgetall(self._nodes)
            found = []
            for field, content in sorted(fields.items()):
                with suppress(msgspec.DecodeError):
                    report = msgspec.json.decode(content, type=Report)
                    found.append((report, max(now - report.time, 0.0)))
                    if found[-1][1] >= FORGET_S:
                        self._client.hdel(self._nodes, field)
        return [(report, age) for report, age in found if age < FORGET_S]

    def _now(self) -> float:
        """By Redis's clock, which all nodes share."""
        seconds, micros = self._client.time()
        return float(seconds) + float(micros) / 1e6

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as err:
            raise PlaceAway(f"{self.name} does not answer: {err}") from err


def read_content(content: bytes, origin: object) -> Declared:
    """A document as a place holds it. Raises DocumentInvalid.

    `models` must be there: a file that is cut off after its first line would take everything out of service.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as err:
        raise DocumentInvalid(f"{origin}: not UTF-8 ({err})") from err
    declared = document.parse(text, origin)
    if not declared.models and not re.search(r"^models:", text, re.MULTILINE):
        raise DocumentInvalid(f"{origin}: it has no `models`; write `models: {{}}` to serve nothing")
    return declared


def revision_of(content: bytes | None) -> int:
    """The one that a place's content names; 0 where it names none or cannot be read."""
    with suppress(DocumentInvalid):
        return (read_content(content, "").revision or 0) if content else 0
    return 0


def publish(place: Place, declared: Declared) -> int:
    """Write a document to a place, with the next revision there, which this returns.

    If it names a revision, only if the place holds that one. Raises Conflict or PlaceAway.
    """
    there = place.peek()
    now = revision_of(there)
    if declared.revision is not None and declared.revision != now:
        raise Conflict(
            f"{place.name} holds revision {now}, the document was made from revision {declared.revision}; "
            "look (marctl state show --from) and try again"
        )
    place.replace(there, document.dump(declared.document, now + 1).encode())
    return now + 1
