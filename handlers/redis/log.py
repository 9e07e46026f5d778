"""The prediction log: one record per question, of failures too, in a Redis stream.

A worker puts what became of a question into a bounded queue; a thread of its own sends it on, many records at a time.
Nothing here can delay or fail a prediction. While Redis is away or full, records go to a file
(handlers/redis/spill.py), or wait in the queue where no folder for such files is given; a full queue loses its oldest
records, which are counted. scripts/records/ takes streams and files to Parquet.

True labels arrive later, by `POST /feedback`, into a stream of their own.

Records are msgpack maps, so that fields can be added and dropped: readers ignore what they do not know. What an outcome
consists of is the task's to say; each worker leaves its declaration beside the streams.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import re
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.errors import Invalid, LoadError, NotJson, Unavailable
from marctl_handlers.core.json_form import plain
from marctl_handlers.core.messages import (
    EXPERIMENT_HEADER,
    FAILED_HEADER,
    ROLE_HEADER,
    SAMPLE_HEADER,
    SHADOW_HEADER,
    TRACE_HEADER,
    Logged,
    Model,
)
from marctl_handlers.core.settings import Log
from marctl_handlers.core.task import Task
from marctl_handlers.core.trace import traceparent
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.redis.spill import LABEL, PREDICTION, Frame, Spill, open_spill

log = logging.getLogger(__name__)

PREDICTIONS, LABELS = "marctl:{log}:predictions", "marctl:{log}:labels"
SALT, IDENTITY = "marctl:{log}:salt", "marctl:{log}:identity"
DECLARATIONS, WRITER = "marctl:{log}:declarations", "marctl:{log}:writer:"
"""Keys; the part in braces keeps them together in a Redis cluster."""
FIELD = b"r"
STREAM_RECORDS = 100_000
"""About the length of a stream: its oldest records are lost where nothing drains them."""
QUEUE_RECORDS = 20_000
QUEUE_BYTES = 32 << 20
"""Of the request bodies whose questions are queued."""
GATHER_S = 0.05
"""How long the first record waits for others."""
WRITE_RECORDS = 64
"""In one round trip; few enough that encoding them does not hold the interpreter for long."""
RETRY_S = 0.25
REPLY_TIMEOUT_S = 1.0
"""Long, because no request waits for this thread."""
CLOSE_S = 1.0
WRITER_S = 3600
"""How long Redis remembers which batch of a worker came last."""
USER_HEADER = "x-user-id"
"""Set by the gateway (scripts/gateway/names.py), the user's aside."""
LONGEST_HEADER = 128
PREDICTION_ID = r"^[\x21-\x7e]{1,140}$"

# One round trip, however many records. The salt is the first worker's; a Redis that lost it takes another worker's. The
# identity tells streams from those that a Redis which lost its data begins anew. The number of the batch makes it safe
# to send one again whose reply did not come.
APPEND = """
redis.call('SET', KEYS[3], ARGV[2], 'NX')
redis.call('HSETNX', KEYS[4], ARGV[3], ARGV[4])
redis.call('SET', KEYS[6], ARGV[8], 'NX')
if redis.call('GET', KEYS[5]) ~= ARGV[5] then
  local labels = 9 + ARGV[7]
  for i = 9, #ARGV do
    redis.call('XADD', i < labels and KEYS[1] or KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'r', ARGV[i])
  end
  redis.call('SET', KEYS[5], ARGV[5], 'EX', ARGV[6])
end
return redis.call('GET', KEYS[3])
"""

LabelType = Literal["int", "float", "str"]
Label = int | float | str


class Declaration(msgspec.Struct, frozen=True):
    """What a model's task says of its outcomes and labels."""

    model: str
    columns: tuple[LogColumn, ...]
    label_type: LabelType = "str"


class PredictionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question and what became of it."""

    prediction_id: str
    time_us: int
    """Microseconds since 1970, UTC."""
    model: str
    version: str
    digest: str = ""
    """SHA-256 of what the version's archive holds; empty for another version's answer from the cache."""
    declaration: str = ""
    """Key of the outcome's Declaration."""
    code: int = 200
    """HTTP status of this question, also where its request had several and was answered 200 as a whole."""
    error: str | None = None
    """Short name of the failure."""
    outcome: dict[str, Any] | None = None
    """Values of the declared columns; None for a failure."""
    experiment: str | None = None
    role: str | None = None
    """How it was assigned: split, pinned, fallback or shadow."""
    user: str | None = None
    """Salted hash of the header x-user-id."""
    queue_ms: float | None = None
    """From the gateway to the worker."""
    batch_ms: float | None = None
    """Of it, waiting for the batch to fill."""
    handler_ms: float | None = None
    """In the worker, for the whole batch."""
    cache: str | None = None
    """hit, miss or stale; None where no cache was asked."""
    fallback_from: str | None = None
    """The version that failed this request, if another version or an earlier answer took its place."""
    shadow: bool = False
    """Whether the request was a copy, whose answer no client saw."""
    traceparent: str | None = None
    """The client's own place in a trace (W3C Trace Context)."""
    input: str | None = None
    """The question as JSON, where the recipe says `log: {input: whole}`."""
    input_hash: str | None = None
    """Salted hash of the same, where it says whole or hash."""
    writer: str = ""
    """The worker process."""
    sequence: int = 0
    """Counted by each writer, from 1: a gap is a record that was lost."""


class LabelRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The true label of an earlier prediction; of several the latest counts."""

    prediction_id: str
    label: Label
    time_us: int
    source: str
    """`feedback` or `command`."""
    model: str | None = None
    """None, for any model, in records of older workers alone."""
    writer: str = ""
    sequence: int = 0


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of POST /feedback. `label` has the type that the model's task declares; `model` may be left out for the
    default model."""

    prediction_id: Annotated[str, msgspec.Meta(pattern=PREDICTION_ID)]
    label: Label
    model: str | None = None


LABEL_TYPES: dict[LabelType, tuple[type, str]] = {"int": (int, "1"), "float": (float, "0.5"), "str": (str, '"..."')}
"""With an example."""
COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Queued(msgspec.Struct, frozen=True, gc=False):
    """A question as it waits in the queue."""

    sequence: int
    record: Logged


Entry = Queued | LabelRecord


@dataclass(frozen=True)
class Batch:
    """Records of one round trip, encoded. Sent again, it has the same number."""

    number: int
    predictions: list[bytes]
    labels: list[bytes]

    def __len__(self) -> int:
        return len(self.predictions) + len(self.labels)

    @property
    def frames(self) -> list[Frame]:
        return [Frame(PREDICTION, each) for each in self.predictions] + [Frame(LABEL, each) for each in self.labels]


class PredictionLog:
    """One worker's log. `written`, `spilled` and `dropped` count records and labels since the start."""

    def __init__(
        self,
        settings: Log,
        declaration: Declaration,
        version: str,
        digest: str,
        link: RedisLink,
        writer: LogWriter | None = None,
    ) -> None:
        """`link`: of the writer's thread, which is the only one that asks it; `writer`: one of this log's own if left
        out. The environment says where to spill (handlers/redis/spill.py).

        Raises LoadError for columns that the log cannot have.
        """
        check_columns(declaration.columns)
        self.written = self.spilled = self.dropped = 0
        self._settings = settings
        self._threshold = round(settings.share * 2**32)
        self._declaration = msgspec.json.encode(declaration)
        self._declaration_id = declaration_id(self._declaration)
        self._model, self._version, self._digest = declaration.model, version, digest
        self._link = link
        self._writer = secrets.token_hex(6)
        self._spill = self._open_spill()
        self._use_salt(self._spill.salt() if self._spill else secrets.token_hex(16).encode())
        self._salt_is_known = False
        """Whether Redis has said which salt is in use."""
        self._batches = 0
        self._unsure: Batch | None = None
        """Sent, but no reply came: Redis may have it or not."""
        self._sequence = self._label_sequence = 0
        self._queue: deque[Entry] = deque()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._encode = msgspec.msgpack.Encoder(enc_hook=plain_number).encode
        self._encode_input = msgspec.json.Encoder().encode
        label_type, example = LABEL_TYPES[declaration.label_type]
        self._feedback_example = f'{{"prediction_id": "...", "label": {example}}}'
        self._decode_feedback = msgspec.json.Decoder(feedback_type(label_type)).decode
        self._writer_thread = writer or LogWriter()
        self._writer_thread.add(self)

    def add(self, record: Logged) -> None:
        """Remember what became of one question, unless it is outside of the sampled share: some microseconds, and never
        an error.

        Shares are drawn by the request's id: a request and its copy to a shadow are both in or both out.
        """
        try:
            if self._threshold < 2**32 and zlib.crc32(record.request_id.encode()) >= self._threshold:
                return
            if SAMPLE_HEADER in record.headers:  # the version's own sample, which is not logged
                return
            with self._lock:
                self._sequence += 1
                self._put(Queued(self._sequence, record))
        except Exception:
            self._lose(1, "could not queue a record")

    def label(self, body: bytes | None) -> Feedback:
        """Remember a true label. Raises NotJson, Invalid, or Unavailable where it could be lost."""
        example = f"expected {self._feedback_example}"
        try:
            feedback: Feedback = self._decode_feedback(body or b"")
        except msgspec.ValidationError as err:
            raise Invalid(f"{err}; {example}") from err
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise NotJson(f"the body is not JSON: {plain(err)}; {example}") from err
        if feedback.model not in (None, self._model):
            raise Invalid(f"this is model {self._model}; send labels of {feedback.model} to that one - at `$.model`")
        if not self._link.available and self._spill is None:
            raise Unavailable("the prediction log can't be written now; send the label again in some seconds")
        with self._lock:
            self._label_sequence += 1
            self._put(
                LabelRecord(
                    prediction_id=feedback.prediction_id,
                    label=feedback.label,
                    time_us=time.time_ns() // 1000,
                    source="feedback",
                    model=self._model,
                    writer=self._writer,
                    sequence=self._label_sequence,
                )
            )
        return feedback

    def totals(self) -> dict[str, int]:
        """For the metrics page."""
        return {
            "handler_log_written_total": self.written,
            "handler_log_spilled_total": self.spilled,
            "handler_log_dropped_total": self.dropped,
        }

    def close(self) -> None:
        """Write what is queued, for at most a second."""
        self._writer_thread.close()

    def leave(self) -> None:
        """Write what is queued, without being waited for, and nothing afterwards: the version leaves this worker."""
        self._writer_thread.remove(self)

    @property
    def waits(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self._queue or self._unsure)

    def _put(self, entry: Entry) -> None:
        """With the lock held."""
        self._queue.append(entry)
        self._queued_bytes += weight(entry)
        while len(self._queue) > QUEUE_RECORDS or self._queued_bytes > QUEUE_BYTES:
            self._queued_bytes -= weight(self._queue.popleft())
            self.dropped += 1
        self._writer_thread.wake()

    def _take(self) -> list[Entry]:
        with self._lock:
            entries = [self._queue.popleft() for _ in range(min(len(self._queue), WRITE_RECORDS))]
            self._queued_bytes -= sum(map(weight, entries))
        return entries

    def flush(self, closing: threading.Event) -> None:
        """Write what is queued, to Redis or else to the spill file. Without either it stays in the queue.

        For the writer's thread, as is `spill_unsure`.
        """
        try:
            while self.waits:
                if self._link.available or (not closing.wait(RETRY_S) and self._link.available):
                    self._send_next()
                elif self._spill is not None and self._queue:
                    self._spill_batch(self._next_batch())
                elif closing.is_set() or self._spill is not None:
                    return
        except Exception:
            self._lose(0, "could not write records")

    @property
    def unsure(self) -> bool:
        """Whether a batch is to be sent again whose reply did not come."""
        return self._unsure is not None

    def _send_next(self) -> None:
        """One batch. Without a reply it is kept, to be sent again; one that Redis refuses goes to the spill file."""
        if not self._salt_is_known and self._send(Batch(0, [], [])) is None:
            return
        batch = self._unsure or self._next_batch()
        sent = self._send(batch)
        self._unsure = batch if sent is None else None
        if sent:
            self.written += len(batch)
        elif sent is False:
            self._spill_batch(batch)

    def _send(self, batch: Batch) -> bool | None:
        """Whether Redis took it; None if no reply came."""
        keys = (PREDICTIONS, LABELS, SALT, DECLARATIONS, WRITER + self._writer, IDENTITY)
        declared = (self._declaration_id, self._declaration)
        numbers = (batch.number, WRITER_S, len(batch.predictions))
        fixed = (STREAM_RECORDS, self._salt, *declared, *numbers, secrets.token_hex(8))
        replies = self._link.ask(("EVAL", APPEND, len(keys), *keys, *fixed, *batch.predictions, *batch.labels))
        if replies is None:
            return None
        if not isinstance(replies[0], bytes):
            return False
        self._salt_is_known = True
        if replies[0] != self._salt:
            self._use_salt(replies[0])
            if self._spill is not None:
                self._spill.keep_salt(self._salt)
        return True

    def _spill_batch(self, batch: Batch) -> None:
        if self._spill is not None and self._spill.append(self._declaration, batch.frames):
            self.spilled += len(batch)
        else:
            self._lose(len(batch))

    def spill_unsure(self) -> None:
        """At the end a record that comes twice is better than none; readers can tell by writer and sequence."""
        if self._unsure is not None:
            self._spill_batch(self._unsure)

    def _lose(self, count: int, why: str = "") -> None:
        with self._lock:
            self.dropped += count
        if why:
            log.exception("%s %s: the prediction log %s", self._model, self._version, why)

    def _next_batch(self) -> Batch:
        self._batches += 1
        batch = Batch(self._batches, [], [])
        for entry in self._take():
            try:
                if isinstance(entry, LabelRecord):
                    batch.labels.append(self._encode(entry))
                else:
                    batch.predictions.append(self._encode(self._record(entry)))
            except Exception:
                self._lose(1, "could not encode a record")
        return batch

    def _record(self, entry: Queued) -> PredictionRecord:
        logged, keep = entry.record, self._settings.input
        headers = logged.headers
        user = headers.get(USER_HEADER)
        fallback_from, shadow = cut(headers.get(FAILED_HEADER)), SHADOW_HEADER in headers
        question = b"" if keep == "none" or logged.question is None else self._encode_input(logged.question)
        return PredictionRecord(
            prediction_id=logged.prediction_id,
            time_us=logged.time_us,
            model=self._model,
            version=logged.version or self._version,
            digest=self._digest if logged.version in (None, self._version) else "",
            declaration=self._declaration_id,
            code=logged.code,
            error=logged.error,
            outcome=None if logged.kept is None else dict(logged.kept),
            experiment=cut(headers.get(EXPERIMENT_HEADER)),
            role=cut(headers.get(ROLE_HEADER)) or ("shadow" if shadow else "fallback" if fallback_from else None),
            user=None if user is None else self._hash(user.encode("utf-8", "surrogatepass")),
            queue_ms=logged.queue_ms,
            batch_ms=logged.batch_ms,
            handler_ms=logged.handler_ms,
            cache=logged.cache,
            fallback_from=fallback_from,
            shadow=shadow,
            traceparent=traceparent(headers.get(TRACE_HEADER)),
            input=question.decode() if question and keep == "whole" else None,
            input_hash=self._hash(question) if question else None,
            writer=self._writer,
            sequence=entry.sequence,
        )

    def _use_salt(self, salt: bytes) -> None:
        self._salt = salt
        self._key = hashlib.sha256(salt).digest()

    def _hash(self, content: bytes) -> str:
        return hashlib.blake2b(content, key=self._key, digest_size=16).hexdigest()

    def _open_spill(self) -> Spill | None:
        """None where it cannot be had, which is logged: predictions go on."""
        try:
            spill = open_spill(self._writer)
            if spill is not None:
                spill.salt()
        except (OSError, ValueError) as err:
            log.warning("the prediction log has no spill file, so it loses records while Redis is away: %s", err)
            return None
        return spill


class LogWriter:
    """The thread that writes what the logs of a process have queued, one after the other."""

    def __init__(self, gather_s: float = GATHER_S) -> None:
        self._gather_s = gather_s
        self._logs: list[PredictionLog] = []
        self._leaving: list[PredictionLog] = []
        self._lock = threading.Lock()
        self._waiting = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, log: PredictionLog) -> None:
        with self._lock:
            self._logs.append(log)

    def remove(self, log: PredictionLog) -> None:
        """Once what it has queued is written."""
        with self._lock:
            self._leaving.append(log)
        self.wake()

    def wake(self) -> None:
        if not self._waiting.is_set():
            self._waiting.set()

    def close(self) -> None:
        """Write what is queued, for at most a second."""
        self._closing.set()
        self._waiting.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._waiting.wait(RETRY_S if any(log.unsure for log in self._all()) else None)
            self._closing.wait(self._gather_s)
            self._waiting.clear()
            for log in self._all():
                if log.waits:
                    log.flush(self._closing)
            self._forget()
        for log in self._all():
            log.spill_unsure()

    def _all(self) -> list[PredictionLog]:
        with self._lock:
            return list(self._logs)

    def _forget(self) -> None:
        """Those that leave and have nothing left to write."""
        with self._lock:
            gone = [log for log in self._leaving if not log.waits]
            self._leaving = [log for log in self._leaving if log not in gone]
            self._logs = [log for log in self._logs if log not in gone]


def weight(entry: Entry) -> int:
    return entry.record.size_bytes if isinstance(entry, Queued) else 0


def cut(header: str | None) -> str | None:
    return None if header is None else header[:LONGEST_HEADER]


def plain_number(value: Any) -> Any:
    """A number of numpy or torch as Python's; raises TypeError for anything else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be logged")


def declaration_id(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()[:16]


def check_columns(columns: Sequence[LogColumn]) -> None:
    """Raise LoadError for log columns that no table can have."""
    names = [column.name for column in columns]
    for name in names:
        if not COLUMN_NAME.fullmatch(name):
            raise LoadError(f"log column {name!r}: expected letters, digits and underscores, at most 64")
        if names.count(name) > 1:
            raise LoadError(f"log column {name!r} is declared {names.count(name)} times")


def feedback_type(label_type: Any) -> Any:
    """Feedback whose label has this type."""
    return msgspec.defstruct("Feedback", [("label", label_type)], bases=(Feedback,), frozen=True)


def open_log(
    task: Task[Any, Any],
    model: Model,
    digest: str,
    link: RedisLink | None = None,
    writer: LogWriter | None = None,
) -> PredictionLog | None:
    """The log of a version; None if it is to keep none, or there is no Redis. Raises LoadError.

    `link` and `writer`: those that the versions of a process share; otherwise it has its own.
    """
    settings = task.settings.log
    if settings.share <= 0:
        return None
    link = link or RedisLink.from_environment(REPLY_TIMEOUT_S)
    if link is None:
        return None
    label_types: list[LabelType] = [name for name, (kind, _) in LABEL_TYPES.items() if kind is task.label_type]
    declaration = Declaration(model.name, task.log_columns, *label_types)
    opened = PredictionLog(settings, declaration, model.version, digest, link, writer)
    if writer is None:
        atexit.register(opened.close)
    return opened
