"""The prediction log: a record of every answer, in a Redis stream, written beside the path of a prediction.

A worker puts what it answered into a bounded queue; a thread of its own sends it on, many at a time. Nothing here can
hold up or fail a prediction: a full queue loses its oldest entries, an absent Redis all of them, and both are counted.
`marctl log drain` takes the streams to Parquet files (scripts/records/).

True labels arrive later, by `POST /feedback`, into a stream of their own.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from handlers.core.errors import Invalid, NotJson, Unavailable
from handlers.core.json_form import plain
from handlers.core.messages import FAILED_HEADER, SHADOW_HEADER, Logged, Model
from handlers.core.settings import Log
from handlers.core.task import Task
from handlers.redis.link import RedisLink

log = logging.getLogger(__name__)

PREDICTIONS, LABELS = "marctl:{log}:predictions", "marctl:{log}:labels"
SALT = "marctl:{log}:salt"
"""Keys; the part in braces keeps them together in a Redis cluster."""
FIELD = b"r"
STREAM_RECORDS = 100_000
"""A stream's length, about: what a drain does not fetch in time loses its oldest records."""
QUEUE_RECORDS = 20_000
QUEUE_BYTES = 32 << 20
"""Of the request bodies whose questions are queued."""
GATHER_S = 0.05
"""How long the first record waits for others."""
WRITE_RECORDS = 64
"""In one round trip; few enough that encoding them does not hold the interpreter for long."""
RETRY_S = 0.25
REPLY_TIMEOUT_S = 1.0
"""Nobody waits for this thread."""
CLOSE_S = 1.0
USER_HEADER = "x-user-id"
PREDICTION_ID = r"^[\x21-\x7e]{1,140}$"
FEEDBACK_EXAMPLE = '{"prediction_id": "...", "label": 1}'

# One round trip, however many records. The salt is the first comer's; a Redis that lost it takes the worker's again.
APPEND = """
redis.call('SET', KEYS[2], ARGV[2], 'NX')
for i = 3, #ARGV do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'r', ARGV[i]) end
return redis.call('GET', KEYS[2])
"""


class PredictionRecord(msgspec.Struct, frozen=True, array_like=True):
    """One answered question. Archives carry the code that wrote it: fields are only ever added, at the end."""

    prediction_id: str
    time_us: int
    """Microseconds since 1970, UTC."""
    model: str
    version: str
    digest: str
    """SHA-256 of what the version's archive holds; empty for another version's answer from the cache."""
    prediction: int | None
    confidence: float | None
    probabilities: list[float] | None
    latency_ms: float | None
    cache: str | None
    """hit, miss or stale; None where no cache was asked."""
    fallback_from: str | None
    """The version that failed this request, if another one or an earlier answer stood in."""
    shadow: bool
    """Whether the request was a copy, whose answer no client saw."""
    user: str | None
    """Salted hash of the header x-user-id."""
    input: str | None
    """The question as JSON, where the recipe says `log: {input: whole}`."""
    input_hash: str | None
    """Salted hash of the same, where it says whole or hash."""
    writer: str
    sequence: int
    """Counted by each worker process, `writer`: a gap is a record that was lost."""


class LabelRecord(msgspec.Struct, frozen=True, array_like=True):
    """The true label of an earlier prediction; of several the latest counts. Fields are only ever added, at the end."""

    prediction_id: str
    label: int
    time_us: int
    source: str
    """`feedback` or `command`."""


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of POST /feedback. `model` says which model's workers take it; the default one's if left out."""

    prediction_id: Annotated[str, msgspec.Meta(pattern=PREDICTION_ID)]
    label: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    model: str | None = None


class Answered(msgspec.Struct, frozen=True, gc=False):
    """An answer as it waits in the queue, before anything is hashed or encoded."""

    sequence: int
    time_us: int
    prediction_id: str
    question: Any
    answer: Any
    cache: str | None
    fallback_from: str | None
    shadow: bool
    user: str | None
    body_bytes: int


class PredictionLog:
    """One worker's log. `written` and `dropped` count records and labels since the start."""

    def __init__(self, settings: Log, model: str, version: str, digest: str, link: RedisLink) -> None:
        """`link`: of this log alone; its thread is the only one that asks it."""
        self.written = 0
        self.dropped = 0
        self._settings = settings
        self._threshold = round(settings.share * 2**32)
        self._model, self._version, self._digest = model, version, digest
        self._link = link
        self._writer = secrets.token_hex(6)
        self._salt = secrets.token_hex(16).encode()
        """Offered to a Redis that has none; afterwards the one that it has."""
        self._key: bytes | None = None
        self._sequence = 0
        self._queue: deque[Answered | LabelRecord] = deque()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._waiting = threading.Event()
        self._closing = threading.Event()
        self._encode = msgspec.msgpack.Encoder().encode
        self._encode_input = msgspec.json.Encoder().encode
        self._decode_feedback = msgspec.json.Decoder(Feedback).decode
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, record: Logged) -> None:
        """Remember one answer, unless it is outside of the sampled share: some microseconds, and never an error.

        Shares are drawn by the request's id: a request and its copy to a shadow are both in or both out.
        """
        if record.error is not None:
            return
        if self._threshold < 2**32 and zlib.crc32(record.request_id.encode()) >= self._threshold:
            return
        headers, kept = record.headers, record.kept or {}
        with self._lock:
            self._sequence += 1
            entry = Answered(
                self._sequence,
                record.time_us,
                record.prediction_id,
                record.question,
                {**kept, "latency_ms": record.handler_ms, "model_version": record.version or self._version},
                record.cache,
                headers.get(FAILED_HEADER),
                SHADOW_HEADER in headers,
                headers.get(USER_HEADER),
                record.size_bytes,
            )
            self._put(entry)

    def label(self, body: bytes | None) -> Feedback:
        """Remember a true label. Raises NotJson, Invalid, or Unavailable while Redis is away."""
        try:
            feedback: Feedback = self._decode_feedback(body or b"")
        except msgspec.ValidationError as err:
            raise Invalid(f"{err}; expected {FEEDBACK_EXAMPLE}") from err
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise NotJson(f"the body is not JSON: {plain(err)}; expected {FEEDBACK_EXAMPLE}") from err
        if not self._link.closed:
            raise Unavailable("the prediction log can't be written now; send the label again in some seconds")
        with self._lock:
            self._put(LabelRecord(feedback.prediction_id, feedback.label, time.time_ns() // 1000, "feedback"))
        return feedback

    def totals(self) -> dict[str, int]:
        """For the metrics page."""
        return {"handler_log_written_total": self.written, "handler_log_dropped_total": self.dropped}

    def close(self) -> None:
        """Write what is queued, for at most a second."""
        self._closing.set()
        self._waiting.set()
        self._thread.join(CLOSE_S)

    def _put(self, entry: Answered | LabelRecord) -> None:
        """With the lock held."""
        self._queue.append(entry)
        self._queued_bytes += weight(entry)
        while len(self._queue) > QUEUE_RECORDS or self._queued_bytes > QUEUE_BYTES:
            self._queued_bytes -= weight(self._queue.popleft())
            self.dropped += 1
        if not self._waiting.is_set():
            self._waiting.set()

    def _take(self) -> list[Answered | LabelRecord]:
        with self._lock:
            entries = [self._queue.popleft() for _ in range(min(len(self._queue), WRITE_RECORDS))]
            self._queued_bytes -= sum(map(weight, entries))
        return entries

    def _run(self) -> None:
        while not self._closing.is_set():
            self._waiting.wait()
            self._closing.wait(GATHER_S)
            self._waiting.clear()
            self._flush()

    def _flush(self) -> None:
        """Write all that is queued. While Redis is away it stays in the queue, which loses its oldest then."""
        while self._queue:
            if not self._link.closed:
                if self._closing.wait(RETRY_S):
                    return
                continue
            entries = self._take()
            try:
                written = self._write(entries)
            except Exception:
                log.exception("%s %s: the prediction log lost %d records", self._model, self._version, len(entries))
                written = 0
            with self._lock:
                self.written += written
                self.dropped += len(entries) - written

    def _write(self, entries: Sequence[Answered | LabelRecord]) -> int:
        """How many are in the streams now. What failed is not sent again: Redis may have taken it all the same."""
        if self._key is None and not self._send(LABELS, []):
            return 0
        answers = [self._encode(self._record(entry)) for entry in entries if isinstance(entry, Answered)]
        labels = [self._encode(entry) for entry in entries if isinstance(entry, LabelRecord)]
        return sum(
            len(records)
            for stream, records in ((PREDICTIONS, answers), (LABELS, labels))
            if records and self._send(stream, records)
        )

    def _send(self, stream: str, records: list[bytes]) -> bool:
        replies = self._link.ask(("EVAL", APPEND, 2, stream, SALT, STREAM_RECORDS, self._salt, *records))
        if not replies or not isinstance(replies[0], bytes):
            return False
        self._salt = replies[0]
        self._key = hashlib.sha256(self._salt).digest()
        return True

    def _record(self, entry: Answered) -> PredictionRecord:
        keep, answer = self._settings.input, entry.answer
        version = answer["model_version"]
        question = b"" if keep == "none" else self._encode_input(entry.question)
        return PredictionRecord(
            prediction_id=entry.prediction_id,
            time_us=entry.time_us,
            model=self._model,
            version=version,
            digest=self._digest if version == self._version else "",
            prediction=answer.get("prediction"),
            confidence=answer.get("confidence"),
            probabilities=answer.get("probabilities"),
            latency_ms=answer.get("latency_ms"),
            cache=entry.cache,
            fallback_from=entry.fallback_from,
            shadow=entry.shadow,
            user=None if entry.user is None else self._hash(entry.user.encode("utf-8", "surrogatepass")),
            input=question.decode() if keep == "whole" else None,
            input_hash=None if keep == "none" else self._hash(question),
            writer=self._writer,
            sequence=entry.sequence,
        )

    def _hash(self, content: bytes) -> str:
        assert self._key is not None
        return hashlib.blake2b(content, key=self._key, digest_size=16).hexdigest()


def weight(entry: Answered | LabelRecord) -> int:
    return entry.body_bytes if isinstance(entry, Answered) else 0


def open_log(task: Task[Any, Any], model: Model, digest: str) -> PredictionLog | None:
    """The log of a worker; None if it is to keep none, or has no Redis."""
    settings = task.settings.log
    link = RedisLink.from_environment(REPLY_TIMEOUT_S) if settings.share > 0 else None
    if link is None:
        return None
    opened = PredictionLog(settings, model.name, model.version, digest, link)
    atexit.register(opened.close)
    return opened
