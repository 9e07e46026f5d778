"""The path of a prediction, the same for every task and every caller: decode, predict, encode.

TorchServe, the archive check, evaluation and batch jobs all call `Task.answer` with a list of requests and get as many
replies, in order. A task adds its own request type and its own forward pass; this file sees to it that each request
gets its own answer or its own error, whatever its neighbours hold.
"""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from handlers.core.errors import (
    HandlerError,
    Invalid,
    ModelFault,
    NotJson,
    NotSupported,
    OutOfTime,
    TooLarge,
    Unavailable,
)
from handlers.core.settings import Settings
from handlers.protocols.tensors import Column

if TYPE_CHECKING:
    from handlers.redis.cache import Cache
    from handlers.redis.log import PredictionLog

log = logging.getLogger(__name__)

JSON = "application/json"
HTML = "text/html; charset=utf-8"
FAILED_HEADER = "x-fallback-from"
STALE_HEADER = "x-fallback-stale"
"""Set by the gateway (scripts/gateway/names.py): the version that failed this request, and that only its last known
answer is wanted."""

Question = TypeVar("Question", bound=msgspec.Struct)
Outcome = TypeVar("Outcome")


def no_header(_: str) -> None:
    """The headers of a request that came without any."""


@dataclass(frozen=True, slots=True)
class Request:
    """One client request as the server hands it over. `body` is None where the server found none."""

    body: bytes | None
    id: str
    explain: bool = False
    header: Callable[[str], str | None] = no_header
    """The header of a lowercase name; to be asked only until the request is answered."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, ready to send; `body` is JSON, UTF-8, if `content_type` does not say otherwise."""

    body: bytes
    code: int = 200
    phrase: str = "OK"
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON


class ErrorBody(msgspec.Struct, frozen=True):
    """The one form of every error."""

    error: str
    detail: str


class Predictions(msgspec.Struct, frozen=True):
    """Answer to a request of several instances (KServe V1 protocol): an answer or an error for each, in order."""

    predictions: list[Any]


class Envelope(msgspec.Struct, frozen=True):
    """The forms a body may take besides the bare question."""

    instances: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    features: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Parsed(Generic[Question]):
    """One request's questions; `several` tells `{"instances": [...]}` from a bare question."""

    questions: list[Question | HandlerError]
    several: bool


@dataclass(frozen=True, slots=True)
class Asked(Generic[Question]):
    """One good question of a batch; `several` tells that its request brought others. `header` is the request's."""

    question: Question
    several: bool
    header: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Found(Generic[Outcome]):
    """What became of one question. `cache`: hit, miss, stale, or None where nothing was looked up."""

    outcome: Outcome | HandlerError
    cache: str | None = None
    version: str | None = None
    """Whose answer it is, if another version's."""


class Task(ABC, Generic[Question, Outcome]):
    """One model version, loaded. Holds nothing of any request between two calls."""

    question_type: ClassVar[type[msgspec.Struct]]
    outcome_type: ClassVar[type[msgspec.Struct] | None] = None
    """What `predict` gives, if it can be kept in the cache."""
    example: ClassVar[str]
    """A request that would have been right, for error messages."""
    inputs: ClassVar[tuple[Column, ...]] = ()
    outputs: ClassVar[tuple[Column, ...]] = ()
    """Fields of questions and answers that the Open Inference Protocol has as tensors; none if the task has none."""
    explainer: Task[Any, Any] | None = None
    """Answers the explain requests, where this worker takes any."""

    def __init__(self, name: str, version: str, settings: Settings) -> None:
        self.name = name
        self.version = version
        self.settings = settings
        self._bare: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self.question_type)
        self._envelope = msgspec.json.Decoder(Envelope)
        self._encoder = msgspec.json.Encoder()
        self._headers = {"x-model-version": version}
        self.log: PredictionLog | None = None
        """Remembers every answer; a server sets it, who answers samples or a batch job does not."""
        self.cache: Cache[Outcome] | None = None
        """Set by a server; samples, evaluations and batch jobs compute every answer."""

    @abstractmethod
    def predict(self, questions: Sequence[Question], deadline: float) -> list[Outcome | None]:
        """An outcome per question, in order; None for those not computed by `deadline` (time.monotonic seconds)."""

    @abstractmethod
    def answer_of(self, question: Question, outcome: Outcome, prediction_id: str, latency_ms: float) -> Any:
        """What the client reads: a msgspec-encodable object."""

    @abstractmethod
    def weight(self, question: Question) -> int:
        """Rows that a question costs."""

    @abstractmethod
    def warm_up(self) -> None:
        """Run the shapes that requests will bring, so that the first client does not wait for them."""

    @property
    def runtime(self) -> str:
        """What outcomes depend on besides the archive: libraries, number format, device."""
        return ""

    def canonical(self, text: str) -> str:
        """One form for texts, or JSON of texts, that the model cannot tell apart."""
        return text

    def fits(self, question: Question, outcome: Outcome) -> bool:
        """Whether an outcome that comes from outside can be one of this question."""
        return True

    def totals(self) -> dict[str, int]:
        """What cache, log and explainer count, for the metrics page."""
        parts = (self.cache, self.log, self.explainer)
        return {name: value for part in parts if part is not None for name, value in part.totals().items()}

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. Never raises for anything a client sent."""
        if self.explainer is not None and any(request.explain for request in requests):
            return self._answer_both(requests, self.explainer)
        started = time.monotonic()
        parsed = [self._parse(request) for request in requests]
        found = iter(self._find_all(asked_of(requests, parsed), started + self.settings.batch_seconds))
        latency_ms = round((time.monotonic() - started) * 1000, 3)
        return [
            self._refusal(entry) if isinstance(entry, HandlerError) else self._reply(entry, found, request, latency_ms)
            for request, entry in zip(requests, parsed, strict=True)
        ]

    def _answer_both(self, requests: Sequence[Request], explainer: Task[Any, Any]) -> list[Reply]:
        """Predictions first: they are quick, and explanations may take all of the batch's time."""
        predicted = iter(self.answer([request for request in requests if not request.explain]))
        explained = iter(explainer.answer([request for request in requests if request.explain]))
        return [next(explained if request.explain else predicted) for request in requests]

    def take_label(self, request: Request) -> Reply:
        """Keep the true label of an earlier prediction in the log."""
        try:
            if self.log is None:
                raise NotSupported(f"model {self.name} {self.version} keeps no prediction log; labels have no place")
            feedback = self.log.label(request.body)
        except HandlerError as err:
            return self._refusal(err)
        return Reply(self._encoder.encode(feedback), 202, "Accepted", self._headers)

    def _parse(self, request: Request) -> Parsed[Question] | HandlerError:
        try:
            if request.explain:
                raise NotSupported(
                    f"{self.name} {self.version} gives predictions only here; explanations have workers of their own, "
                    "which `explanations: {workers: 1}` in the recipe starts and the gateway's /explain asks"
                )
            if request.body is None:
                raise NotJson(
                    "expected a JSON body, got a form or none; send `Content-Type: application/json` and "
                    + self.example
                )
            return self._decode(request.body)
        except HandlerError as err:
            return err

    def _decode(self, body: bytes) -> Parsed[Question]:
        if not body:
            raise NotJson(f"the body is empty; expected {self.example}")
        try:
            return Parsed([self._bare.decode(body)], several=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            bare_error = err
        # The bare question is by far the most common form; only what is not one pays for a second look.
        try:
            envelope = self._envelope.decode(body)
        except msgspec.ValidationError:
            raise self._invalid(bare_error, "$") from bare_error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise NotJson(f"the body is not JSON: {plain(err)}; expected {self.example}") from err
        if envelope.instances is not msgspec.UNSET:
            return self._decode_instances(envelope.instances)
        if envelope.features is not msgspec.UNSET:
            question = self._decode_one(envelope.features, "$.features")
            if isinstance(question, HandlerError):
                raise question
            return Parsed([question], several=False)
        raise self._invalid(bare_error, "$") from bare_error

    def _decode_instances(self, instances: list[msgspec.Raw]) -> Parsed[Question]:
        limits = self.settings
        if not instances:
            raise Invalid('expected at least one instance, got `"instances": []` - at `$.instances`')
        if len(instances) > limits.max_instances:
            raise TooLarge(
                f"expected at most {limits.max_instances} instances, got {len(instances)} - at `$.instances`; "
                "send several requests"
            )
        questions = [self._decode_one(raw, f"$.instances[{i}]") for i, raw in enumerate(instances)]
        rows = sum(self.weight(question) for question in questions if not isinstance(question, HandlerError))
        if rows > limits.max_rows:
            raise TooLarge(
                f"expected at most {limits.max_rows} rows (choices over all instances), got {rows} - at `$.instances`; "
                "send several requests"
            )
        return Parsed(questions, several=True)

    def _decode_one(self, raw: msgspec.Raw, path: str) -> Question | HandlerError:
        try:
            question: Question = self._bare.decode(raw)
            return question
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            return self._invalid(err, path)

    def _invalid(self, err: Exception, path: str) -> HandlerError:
        if not isinstance(err, msgspec.ValidationError):
            return NotJson(f"not JSON: {plain(err)} - at `{path}`; expected {self.example}")
        text = str(err)
        text = text.replace("`$", f"`{path}") if "`$" in text else f"{text} - at `{path}`"
        return Invalid(f"{text}; expected {self.example}")

    def _find_all(self, asked: Sequence[Asked[Question]], deadline: float) -> list[Found[Outcome]]:
        """What became of every good question of the batch, in order: known from before, or predicted."""
        if self.cache is None:
            if any(one.header(STALE_HEADER) for one in asked):
                return [Found(Unavailable("this worker has no cache to look for an earlier answer in")) for _ in asked]
            return [Found(outcome) for outcome in self._predict_all(asked, deadline)]
        return self.cache.answer(asked, lambda missing: self._predict_all(missing, deadline))

    def _predict_all(self, asked: Sequence[Asked[Question]], deadline: float) -> list[Outcome | HandlerError]:
        """Outcomes in order.

        Requests of one question are computed before those of many: a heavy request can make only itself late.
        """
        found: dict[int, Outcome | HandlerError] = {}
        for several in (False, True):
            places = [i for i, one in enumerate(asked) if one.several is several]
            found.update(zip(places, self._predict_apart([asked[i].question for i in places], deadline), strict=True))
        return [found[i] for i in range(len(asked))]

    def _predict_apart(self, questions: list[Question], deadline: float) -> list[Outcome | HandlerError]:
        """The batch at once; if that fails, one by one, so that a question which breaks the model breaks it alone."""
        if not questions:
            return []
        try:
            outcomes = self.predict(questions, deadline)
        except Exception:
            log.exception("%s %s failed on a batch of %d questions", self.name, self.version, len(questions))
            if len(questions) == 1:
                return [ModelFault(f"model {self.name} {self.version} failed on this request")]
            return [outcome for question in questions for outcome in self._predict_apart([question], deadline)]
        late = OutOfTime(
            f"model {self.name} {self.version} did not get to this within {self.settings.batch_seconds:g} s; "
            "send fewer instances at a time"
        )
        return [late if outcome is None else outcome for outcome in outcomes]

    def _reply(
        self, parsed: Parsed[Question], found: Iterator[Found[Outcome]], request: Request, latency_ms: float
    ) -> Reply:
        answers: list[Any] = []
        used: list[Found[Outcome]] = []
        for i, question in enumerate(parsed.questions):
            one: Found[Outcome] = Found(question) if isinstance(question, HandlerError) else next(found)
            if isinstance(question, HandlerError) or isinstance(one.outcome, HandlerError):
                error = one.outcome
                assert isinstance(error, HandlerError)
                if not parsed.several:
                    return self._refusal(error)
                answers.append(ErrorBody(error.error, str(error)))
                continue
            prediction_id = f"{request.id}:{i}" if parsed.several else request.id
            answer = self.answer_of(question, one.outcome, prediction_id, latency_ms)
            answers.append(answer if one.version is None else replace(answer, model_version=one.version))
            used.append(one)
            if self.log is not None:
                self.log.add(request, prediction_id, question, answers[-1], one.cache)
        return self._encode(parsed, answers, self._headers | headers_of(used))

    def _encode(self, parsed: Parsed[Question], answers: list[Any], headers: dict[str, str]) -> Reply:
        """A request's answers, or errors in their places, as they are sent."""
        body = Predictions(answers) if parsed.several else answers[0]
        return Reply(self._encoder.encode(body), headers=headers)

    def _refusal(self, error: HandlerError) -> Reply:
        body = self._encoder.encode(ErrorBody(error.error, str(error)))
        headers = self._headers | {"retry-after": "1"} if isinstance(error, Unavailable) else self._headers
        return Reply(body, error.code, error.phrase, headers)


def asked_of(requests: Sequence[Request], parsed: Sequence[Parsed[Question] | HandlerError]) -> list[Asked[Question]]:
    """The good questions of a batch, in order of appearance."""
    return [
        Asked(question, entry.several, request.header)
        for request, entry in zip(requests, parsed, strict=True)
        if isinstance(entry, Parsed)
        for question in entry.questions
        if not isinstance(question, HandlerError)
    ]


def headers_of(found: Sequence[Found[Any]]) -> dict[str, str]:
    """Whether a reply's answers come from the cache: `hit` if all do; and whose they are, if not this version's."""
    states = {one.cache for one in found}
    if states <= {None}:
        return {}
    state = next(state for state in ("stale", "miss", "hit") if state in states)
    version = next((one.version for one in found if one.version is not None), None)
    return {"x-cache": state} if version is None else {"x-cache": state, "x-model-version": version}


def plain(err: Exception) -> str:
    """A decoding error in a few words; none of the client's bytes are in it."""
    if isinstance(err, RecursionError):
        return "nested too deeply"
    if isinstance(err, UnicodeDecodeError):
        return f"not UTF-8 at byte {err.start}"
    return re.sub(r"^JSON is malformed: ", "", str(err))
