"""The path of a prediction, the same for every task and every caller, in one direction.

    decode -> complete -> look up -> predict -> keep -> answer -> record

A server hands over a batch of requests and gets as many replies, in order. Offline callers (the build's check, an
evaluation, a batch job) call `predict` with questions and get their answers. Whatever fails for one request is that
request's failure: its neighbours get their answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Protocol, TypeVar

import msgspec

from marctl_handlers.core.devices import is_lost, is_out_of_memory, smaller
from marctl_handlers.core.errors import Busy, HandlerError, ModelFault, NotSupported, OutOfTime, TooLarge, Unavailable
from marctl_handlers.core.forms import Decoded, Form, Result, refusal, with_headers
from marctl_handlers.core.json_form import JsonForm
from marctl_handlers.core.log_lines import MAY_QUOTE
from marctl_handlers.core.messages import (
    PROTOCOL_HEADER,
    SAMPLE_HEADER,
    STALE_HEADER,
    START_HEADER,
    TIMEOUT_HEADER,
    TRACE_HEADER,
    Binary,
    Logged,
    Model,
    Reply,
    Request,
    Stamp,
)
from marctl_handlers.core.raw_form import RawForm
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.core.trace import traceparent

log = logging.getLogger(__name__)
Made = TypeVar("Made")
BATCH_SHARE = 2
"""Large requests of a batch are computed while all that is computed costs no more than this many largest requests."""
FOREVER = float("inf")


@dataclass(slots=True, eq=False)
class Item:
    """One question on its way. Steps fill it in, and pass over it once it has an outcome or an error."""

    question: Any
    exchange: Exchange
    outcome: Any = None
    error: HandlerError | None = None
    cache: str | None = None
    """hit, miss, stale, or None where nothing was looked up."""
    version: str | None = None
    """Whose outcome it is, if another version's."""
    answer: Any = None
    kept: Mapping[str, Any] | None = None
    """Values of the task's log columns, where there is an answer."""

    @property
    def open(self) -> bool:
        return self.outcome is None and self.error is None


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what becomes of it."""

    request: Request
    form: Form
    deadline: float
    """In time.monotonic seconds."""
    decoded: Decoded | None = None
    items: list[Item] = field(default_factory=list)
    reply: Reply | None = None
    """Set where there is nothing to compute: an error, or a form's own answer."""
    error: HandlerError | None = None
    """Why the request failed as a whole."""
    logged: bool = False
    """A fault of this request stands in the log; the same one would follow for each of its questions."""
    began: float = field(default_factory=time.monotonic)
    cost: int = 0
    large: bool = False


@dataclass(slots=True)
class Times:
    """Seconds that a batch spent on each part of the path."""

    features: float = 0.0
    """Decoding and checking the questions, and finding what else the model is to be given."""
    cache: float = 0.0
    inference: float = 0.0
    encoding: float = 0.0


class Lookup(Protocol):
    """What the cache knows of a batch."""

    @property
    def missing(self) -> Sequence[Item]:
        """What is to be computed; the other items are settled, or equal to one of these."""

    def keep(self, seconds: float) -> None:
        """Settle the items that equal a computed one, and store what was computed, which took so long."""


class Cache(Protocol):
    """Earlier outcomes of equal questions."""

    def look_up(self, items: Sequence[Item]) -> Lookup: ...

    def totals(self) -> Mapping[str, int]: ...


class RecordLog(Protocol):
    """Where every question is recorded."""

    def add(self, record: Logged) -> None: ...

    def label(self, body: bytes | None) -> msgspec.Struct:
        """Keep a true label. Raises HandlerError."""

    def totals(self) -> Mapping[str, int]: ...


class Watcher(Protocol):
    """Told of each batch once its answers are ready."""

    def see(self, batch: Sequence[Exchange], times: Times) -> None: ...


class Nothing:
    """The lookup without a cache: all is to be computed, nothing is kept."""

    def __init__(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.exchange.request.header(STALE_HEADER) is not None:
                item.error = Unavailable("this worker has no cache in which an earlier answer could be")
        self.missing = [item for item in items if item.open]

    def keep(self, seconds: float) -> None:
        pass


class Pipeline:
    """One loaded version, with what a server puts round it: a cache, a log, further forms of requests."""

    def __init__(
        self,
        task: Task[Any, Any],
        model: Model,
        *,
        forms: Mapping[str, Form] | None = None,
        explainer: Pipeline | None = None,
    ) -> None:
        """`forms`: by the value of the header that names a request's form. `explainer` answers explain requests."""
        self.task = task
        self.model = model
        self.settings: Settings = task.settings
        self.explainer = explainer
        self.cache: Cache | None = None
        """Set by a server; offline callers compute every answer."""
        self.log: RecordLog | None = None
        self.watcher: Watcher | None = None
        self.forms = dict(forms or {})
        self.broken = False
        """The process cannot compute any more, after a fault of its device, and must end."""
        self._plain = task.form() or plain_form(task)
        self._headers = {"x-model-version": model.version}

    # --- for servers

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. Never raises for anything that a client sent."""
        deadline = time.monotonic() + self.settings.batch_seconds
        if self.explainer is None:
            return self._answer(requests, deadline)
        # Predictions first: they are quick, and explanations may take all of the batch's time.
        predicted = iter(self._answer([request for request in requests if not request.explain], deadline))
        explained = iter(self.explainer._answer([request for request in requests if request.explain], deadline))
        self.broken = self.broken or self.explainer.broken
        return [next(explained if request.explain else predicted) for request in requests]

    def _answer(self, requests: Sequence[Request], deadline: float) -> list[Reply]:
        began = time.monotonic()
        batch = [self._decode(request, deadline) for request in requests]
        waiting = [exchange for exchange in batch if exchange.reply is None]
        items = self._complete([item for exchange in waiting for item in exchange.items if item.error is None])
        decoded = time.monotonic()
        lookup = self._look_up(items)
        looked_up = time.monotonic()
        self._compute(lookup.missing, deadline)
        computed = time.monotonic()
        self._guard_batch(lookup.keep, computed - looked_up)
        kept = time.monotonic()
        # Those that equal a computed one, where the cache failed to settle them.
        self._compute([item for item in items if item.open], deadline)
        all_computed = time.monotonic()
        handler_ms = round((all_computed - began) * 1000, 3)
        for exchange in batch:
            self._encode(exchange, handler_ms)
        times = Times(
            features=decoded - began,
            cache=looked_up - decoded + kept - computed,
            inference=computed - looked_up + all_computed - kept if lookup.missing else 0.0,
            encoding=time.monotonic() - all_computed,
        )
        self._report(batch, times, handler_ms)
        return [with_headers(exchange.reply, self._headers) for exchange in batch if exchange.reply is not None]

    def _report(self, batch: Sequence[Exchange], times: Times, handler_ms: float) -> None:
        """To whoever counts, and to the log."""
        if self.watcher is None and self.log is None:
            return
        for exchange in batch:
            for item in exchange.items:
                self._keep_values(item)
        if self.watcher is not None:
            self._guard_batch(self.watcher.see, batch, times)
        if self.log is not None:
            for exchange in batch:
                self._record(exchange, handler_ms, self.log)

    # --- decode

    def _decode(self, request: Request, batch_deadline: float) -> Exchange:
        """The request's questions, each checked; a failure of the request as a whole has its reply at once."""
        form = self._plain
        exchange = Exchange(request, form, min(batch_deadline, deadline_of(request)))
        try:
            name = request.header(PROTOCOL_HEADER)
            exchange.form = form = self._form_of(name) if name else form
            self._refuse_explaining(request)
            decoded = form.decode(request)
            if isinstance(decoded, Reply):
                exchange.reply = decoded
                return exchange
            exchange.decoded = decoded
            exchange.items = [self._item(question, exchange) for question in decoded.questions]
            if not decoded.several and exchange.items[0].error is not None:
                raise exchange.items[0].error
            self._charge(exchange)
        except Exception as err:
            self._refuse(exchange, self._failure(err, exchange, "decoding"))
        return exchange

    def _form_of(self, name: str) -> Form:
        form = self.forms.get(name)
        if form is None:
            raise NotSupported(f"{self.model} does not take requests in the form {name!r}; it takes plain JSON")
        return form

    def _refuse_explaining(self, request: Request) -> None:
        if request.explain and not self.task.explains:
            raise NotSupported(
                f"{self.model} has no explainer workers. Add `explanations: {{workers: 1}}` to its recipe, rebuild, "
                "register"
            )

    def _item(self, question: Any, exchange: Exchange) -> Item:
        """A question, held to what the task itself checks."""
        item = Item(question, exchange)
        if isinstance(question, HandlerError):
            item.question, item.error = None, question
        else:
            try:
                self.task.check(question)
            except Exception as err:
                item.error = self._failure(err, exchange, "checking")
        return item

    def _charge(self, exchange: Exchange) -> None:
        """What the request costs. Raises TooLarge beyond the limit."""
        limit = self.settings.max_cost
        if limit is None:
            return
        questions = [item.question for item in exchange.items if item.error is None]
        cost = self.task.cost(questions)
        if cost > limit:
            raise TooLarge.beyond(limit, cost, self.task.cost_unit)
        exchange.cost = cost
        exchange.large = cost > self.settings.small_cost

    # --- complete

    def _complete(self, items: list[Item]) -> list[Item]:
        """Put into the questions what they leave to a store; those items for which that succeeds."""
        try:
            completed = self.task.complete([item.question for item in items])
            if len(completed) != len(items):
                raise ValueError(f"complete gave {len(completed)} questions for {len(items)}")
        except Exception as err:
            if len(items) > 1:
                return [done for item in items for done in self._complete([item])]
            for item in items:
                item.error = self._failure(err, item.exchange, "completing")
            return []
        for item, question in zip(items, completed, strict=True):
            if isinstance(question, HandlerError):
                item.error = question
            else:
                item.question = question
        return [item for item in items if item.error is None]

    # --- look up, predict, keep

    def _look_up(self, items: Sequence[Item]) -> Lookup:
        if self.cache is None:
            return Nothing(items)
        lookup = self._guard_batch(self.cache.look_up, items)
        return Nothing([item for item in items if item.open]) if lookup is None else lookup

    def _compute(self, items: Sequence[Item], batch_deadline: float) -> None:
        """Give each item its outcome or error: small requests together, then large ones, the smallest first.

        TorchServe answers a batch as a whole, so what large requests may cost is bounded: the first of them is always
        computed, the others as long as the batch stays within its share.
        """
        small = [item for item in items if not item.exchange.large]
        self._predict(small, batch_deadline)
        large: dict[int, list[Item]] = {}
        for item in items:
            if item.exchange.large:
                large.setdefault(id(item.exchange), []).append(item)
        spent = sum({id(item.exchange): item.exchange.cost for item in small}.values())
        share = BATCH_SHARE * (self.settings.max_cost or 0)
        for i, together in enumerate(sorted(large.values(), key=lambda group: group[0].exchange.cost)):
            spent += together[0].exchange.cost
            if i and spent > share:
                for item in together:
                    item.error = Busy(
                        f"{self.model} has too many large requests at once, and small ones go first; "
                        "send this one again, or its questions in several requests"
                    )
            else:
                self._predict(together, min(batch_deadline, together[0].exchange.deadline))

    def _predict(self, items: Sequence[Item], deadline: float) -> None:
        """All at once; if that fails, in smaller parts, so that a question which breaks the model breaks it alone."""
        for item in items:
            if item.open and time.monotonic() > item.exchange.deadline:
                item.error = self._late()
        waiting = [item for item in items if item.open]
        if not waiting:
            return
        try:
            outcomes = self.task.predict([item.question for item in waiting], deadline)
            if len(outcomes) != len(waiting):
                raise ValueError(f"predict gave {len(outcomes)} outcomes for {len(waiting)} questions")
        except Exception as err:
            self.broken = self.broken or is_lost(err)
            if len(waiting) == 1 or self.broken:
                for item in waiting:
                    item.error = self._failure(err, item.exchange, "predicting")
                return
            parts = smaller(waiting, err)
        else:
            settle(waiting, outcomes, self._late)
            return
        for part in parts:  # once the exception is gone, which holds the tensors of the pass that failed
            self._predict(part, deadline)

    def _late(self) -> OutOfTime:
        return OutOfTime(
            f"{self.model} did not get to this in time ({self.settings.batch_seconds:g} s for a batch, or less where "
            "the gateway waits less); send it again, or fewer instances at a time"
        )

    # --- answer

    def _encode(self, exchange: Exchange, handler_ms: float) -> None:
        """The request's reply, which is an error where anything fails on the way to it."""
        if exchange.reply is not None or exchange.decoded is None:
            return
        decoded = exchange.decoded
        if decoded.several:
            name_places(exchange.items)
        try:
            results = [self._result(item, i, handler_ms) for i, item in enumerate(exchange.items)]
            try:
                exchange.reply = encoded(exchange, decoded, results)
            except HandlerError:
                raise
            except Exception:
                # One of several answers cannot be encoded, which is no fault of the others.
                exchange.reply = encoded(exchange, decoded, [self._encodable(item) for item in exchange.items])
        except Exception as err:
            self._refuse(exchange, self._failure(err, exchange, "answering"))

    def _result(self, item: Item, place: int, handler_ms: float) -> Result:
        """A question's answer; its failure is its own."""
        if item.error is not None:
            return item.error
        prediction_id = prediction_id_of(item.exchange, place)
        try:
            stamp = Stamp(prediction_id, self.model.name, item.version or self.model.version, handler_ms)
            item.answer = self.task.answer(item.question, item.outcome, stamp)
        except Exception as err:
            item.error = self._failure(err, item.exchange, "answering")
            return item.error
        answer: msgspec.Struct = item.answer
        return answer

    def _encodable(self, item: Item) -> Result:
        """An item's answer if JSON can hold it, else its error."""
        if item.error is None:
            try:
                msgspec.json.encode(item.answer)
            except Exception as err:
                item.error = self._failure(err, item.exchange, "encoding")
        answer: Result = item.error or item.answer
        return answer

    def _refuse(self, exchange: Exchange, error: HandlerError) -> None:
        exchange.error = error
        try:
            exchange.reply = exchange.form.refuse(error, self._headers)
        except Exception as err:
            exchange.reply = refusal(self._failure(err, exchange, "refusing"), self._headers)

    # --- record

    def _record(self, exchange: Exchange, handler_ms: float, to: RecordLog) -> None:
        """One record per question, of failures too; none of the version's own samples."""
        request = exchange.request
        if request.header(SAMPLE_HEADER) is not None or (exchange.decoded is None and exchange.error is None):
            return
        items = exchange.items or [Item(None, exchange)]
        size = len(request.body or b"") // len(items)
        for place, item in enumerate(items):
            self._record_item(item, place, size, handler_ms, to)

    def _record_item(self, item: Item, place: int, size: int, handler_ms: float, to: RecordLog) -> None:
        """After `_keep_values`, whose failure has been told."""
        error = item.error or item.exchange.error
        if error is None and item.kept is None:
            return
        try:
            to.add(self._logged(item, error, place, size, handler_ms))
        except Exception as err:
            self._failure(err, item.exchange, "recording")

    def _keep_values(self, item: Item) -> None:
        """The log columns of an answer."""
        if (item.error or item.exchange.error) is None:
            try:
                item.kept = self.task.log_values(item.question, item.outcome)
            except Exception as err:
                self._failure(err, item.exchange, "recording")

    def _logged(self, item: Item, error: HandlerError | None, place: int, size: int, handler_ms: float) -> Logged:
        exchange = item.exchange
        request = exchange.request
        return Logged(
            request_id=request.id,
            prediction_id=prediction_id_of(exchange, place),
            time_us=time.time_ns() // 1000,
            headers=request.headers,
            question=item.question,
            kept=None if error is not None else item.kept,
            error=None if error is None else error.error,
            code=200 if error is None else error.code,
            cache=item.cache,
            version=item.version,
            queue_ms=request.queue_ms,
            handler_ms=handler_ms,
            size_bytes=size,
            batch_ms=request.batch_ms,
        )

    # --- failures

    def _failure(self, err: Exception, exchange: Exchange, step: str) -> HandlerError:
        """The error to answer; what the client cannot mend is logged, once, with the request's id."""
        if isinstance(err, HandlerError):
            return err
        if not exchange.logged:
            request_id = printable(exchange.request.id)
            event = self._event(exchange, step)
            log.error("%s: %s failed, request %s", self.model, step, request_id, exc_info=err, extra=event)
            exchange.logged = True
        if is_lost(err):
            return Unavailable(f"the GPU of this worker of {self.model} failed, and another one starts; send it again")
        if is_out_of_memory(err):
            return Unavailable(f"{self.model} has not enough memory for this request at the moment; send it again")
        return ModelFault(f"model {self.model} failed on this request")

    def _event(self, exchange: Exchange, step: str) -> dict[str, Any]:
        """What a line of the log says of a failed request."""
        request = exchange.request
        return {
            "request_id": printable(request.id),
            "traceparent": traceparent(request.header(TRACE_HEADER)),
            "kind": step,
            "duration_ms": round((time.monotonic() - exchange.began) * 1000, 3),
            MAY_QUOTE: self.settings.log.input == "whole",
        }

    def _guard_batch(self, step: Callable[..., Made], *arguments: Any) -> Made | None:
        """Whatever serves a batch as a whole must not fail it."""
        try:
            return step(*arguments)
        except Exception:
            log.exception("%s: %s failed", self.model, getattr(step, "__qualname__", step))
            return None

    # --- for offline callers

    def predict(
        self, questions: Iterable[Any], deadline: float = FOREVER, records: Sequence[Request] | None = None
    ) -> list[Result]:
        """An answer or an error per question, in order, without bytes, cache or limits of a request.

        `deadline` is in time.monotonic seconds. `records`: what the log, if there is one, is to know each question as;
        without them nothing is recorded.
        """
        started = time.monotonic()
        items = self._offline(questions, deadline, records)
        spent_ms = round((time.monotonic() - started) * 1000, 3)
        results = [self._result(item, i, spent_ms) for i, item in enumerate(items)]
        if self.log is not None and records is not None:
            for item in items:
                self._keep_values(item)
                self._record_item(item, 0, 0, spent_ms, self.log)
        return results

    def outcomes(self, questions: Iterable[Any], deadline: float = FOREVER) -> list[Any]:
        """The same, but the task's outcomes in place of answers."""
        return [item.outcome if item.error is None else item.error for item in self._offline(questions, deadline)]

    def _offline(
        self, questions: Iterable[Any], deadline: float, records: Sequence[Request] | None = None
    ) -> list[Item]:
        """Questions that no request brought, computed."""
        one = Exchange(Request(None, "offline"), self._plain, deadline)
        exchanges = repeat(one) if records is None else (Exchange(each, self._plain, deadline) for each in records)
        items = [self._item(question, exchange) for question, exchange in zip(questions, exchanges, strict=False)]
        self._complete([item for item in items if item.error is None])
        self._predict(items, deadline)
        return items

    def warm_up(self) -> None:
        """First passes, so that no client waits for them. Who asks why can wait longer than who asks what."""
        (self.explainer or self).task.warm_up()

    def totals(self) -> dict[str, float]:
        """What task, cache, log, feature store and explainer count, for the metrics page."""
        explainer = None if self.explainer is None else self.explainer.task
        parts = (self.task, self.cache, self.log, self.task.store, explainer)
        return {name: value for part in parts if part is not None for name, value in part.totals().items()}


def plain_form(task: Task[Any, Any]) -> Form:
    """Raw bodies for tasks of Binary questions, JSON for all others."""
    if task.question_type is Binary:
        return RawForm(task.content_types, task.settings.max_instances)
    return JsonForm(task.question_type, task.example or example_of(task.question_type), task.settings.max_instances)


def example_of(question: type[msgspec.Struct]) -> str:
    """`{"text": ...}`: the required fields of a question."""
    names = [field.encode_name for field in msgspec.structs.fields(question) if field.required]
    return "{" + ", ".join(f'"{name}": ...' for name in names) + "}"


def settle(items: Sequence[Item], outcomes: Sequence[Any], late: Callable[[], OutOfTime]) -> None:
    """Give each item what the model gave: an outcome, an error of its own, or None if it came too late."""
    for item, outcome in zip(items, outcomes, strict=True):
        item.outcome = outcome
        if outcome is None:
            item.error = late()
        elif isinstance(outcome, HandlerError):
            item.outcome, item.error = None, outcome


def name_places(items: Sequence[Item]) -> None:
    """A task names a field of its question as `$.field`; in a request of several, the instance is named, too."""
    for i, item in enumerate(items):
        if item.error is not None and "`$.instances[" not in str(item.error):
            item.error = type(item.error)(str(item.error).replace("`$", f"`$.instances[{i}]"))


def encoded(exchange: Exchange, decoded: Decoded, results: Sequence[Result]) -> Reply:
    """Raises the error of a lone question, and of a request of which the server could not answer anything."""
    first = results[0]
    if isinstance(first, HandlerError):
        at_fault = all(isinstance(result, HandlerError) and result.code >= 500 for result in results)
        if at_fault or not decoded.several:
            raise first
    return exchange.form.encode(decoded, results, cache_headers(exchange.items))


def prediction_id_of(exchange: Exchange, place: int) -> str:
    several = exchange.decoded is not None and exchange.decoded.several
    return f"{exchange.request.id}:{place}" if several else exchange.request.id


def cache_headers(items: Sequence[Item]) -> dict[str, str]:
    """Whether a reply's answers come from the cache: `hit` if all do; and whose they are, if not this version's."""
    answered = [item for item in items if item.error is None]
    states = {item.cache for item in answered}
    if states <= {None}:
        return {}
    headers: dict[str, str] = {"x-cache": next(state for state in ("stale", "miss", "hit") if state in states)}
    version = next((item.version for item in answered if item.version is not None), None)
    return headers if version is None else {**headers, "x-model-version": version}


def deadline_of(request: Request) -> float:
    """When the gateway stops waiting, in time.monotonic seconds; never, if it has not said so."""
    start, timeout = number_in(request.header(START_HEADER)), number_in(request.header(TIMEOUT_HEADER))
    if start is None or timeout is None:
        return FOREVER
    return time.monotonic() + (start + timeout) / 1000 - time.time()


def number_in(text: str | None) -> float | None:
    """A non-negative decimal number; None for anything else."""
    return float(text) if text is not None and text.replace(".", "", 1).isdecimal() and text.isascii() else None


def printable(request_id: str) -> str:
    """Clients choose request ids; the server's log is read line by line."""
    return request_id if request_id.isascii() and request_id.isprintable() else repr(request_id)[:140]
