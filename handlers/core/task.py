"""What a task declares: everything that differs between tasks stands behind this one type.

A task is a class. Scripts read its class attributes and class methods, without a model: types for decoding, schemas
and logs, how answers are compared and shown. A worker makes an instance, which `load`s one version's model and then
`predict`s. Nothing of any request is held between two calls.

The shortest task has a question type, an outcome type, `load` and `predict`:

    class Text(msgspec.Struct):
        text: str

    class Sentiment(msgspec.Struct):
        label: str
        score: float

    class SentimentTask(Task[Text, Sentiment]):
        def load(self, folder):
            self.classify = transformers.pipeline("text-classification", model=str(folder))

        def predict(self, questions, deadline):
            return [Sentiment(**found) for found in self.classify([question.text for question in questions])]
"""

from __future__ import annotations

import json
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import msgspec

from marctl_handlers.core.columns import Column, LogColumn, log_columns_of
from marctl_handlers.core.devices import kind_of
from marctl_handlers.core.errors import HandlerError, NotSupported
from marctl_handlers.core.messages import JSON, Stamp
from marctl_handlers.core.settings import Settings

if TYPE_CHECKING:
    from marctl_handlers.core.forms import Form
    from marctl_handlers.core.portable import Portable
    from marctl_handlers.features.specification import Specification

Question = TypeVar("Question", bound=msgspec.Struct)
Row = Mapping[str, Any]
"""Values of features by name."""
Outcome = TypeVar("Outcome", bound=msgspec.Struct)
DIFFERENCES_SHOWN = 5
MARKS = ("truncated", "imputed", "clipped")
"""Fields of an outcome that say how much of the question the model did not see, or saw changed."""


class FeatureStore(Protocol):
    """Where features of entities (customers, merchants) stand, so that a request may name an entity instead."""

    def complete(self, asked: Sequence[tuple[Row, Mapping[str, int | str]]]) -> Sequence[Row | HandlerError]:
        """Of each request's own features and the entities that it names, all of its features: its own go first."""

    def totals(self) -> Mapping[str, int]:
        """For the metrics page."""


class Task(ABC, Generic[Question, Outcome]):
    """One kind of model. A subclass names its types: `class Sentiment(Task[Text, Label])`, both msgspec.Struct."""

    question_type: ClassVar[type[msgspec.Struct]]
    """Decodes requests. `Binary` takes raw bodies instead of JSON."""
    outcome_type: ClassVar[type[msgspec.Struct]]
    """What `predict` gives: kept in the cache, so it holds plain data only."""
    answer_type: ClassVar[type[msgspec.Struct]]
    """What the client reads; if left out, the outcome's fields between the stamp's."""
    bodies: ClassVar[tuple[type, ...]] = ()
    """Types of a whole body, and `replies` of its answer, where the task's own form takes more than one question."""
    replies: ClassVar[tuple[type, ...]] = ()
    settings_type: ClassVar[type[Settings]] = Settings
    example: ClassVar[str] = ""
    """A request that would have been right, for error messages."""
    content_types: ClassVar[tuple[str, ...]] = (JSON,)
    """What a raw body may be, for tasks of `Binary` questions; `image/*` is any image."""
    cost_unit: ClassVar[str] = "questions"
    """What `cost` counts."""
    explains: ClassVar[bool] = False
    """Whether this task answers explain requests; all other tasks answer none."""
    cached: ClassVar[bool] = True
    """Whether an equal question may get an earlier outcome."""
    inputs: ClassVar[tuple[Column, ...]] = ()
    outputs: tuple[Column, ...] = ()
    """Fields of questions and answers that the Open Inference Protocol has as tensors; none if the task has none. A
    loaded task may know its outputs better than its class."""
    log_columns: ClassVar[tuple[LogColumn, ...]] = ()
    """What the prediction log keeps of an outcome, the prediction itself first; by default the plain fields."""
    gives_probabilities_of: Literal["choices", "event"] | None = None
    """Set by tasks that can be calibrated (handlers/core/calibration.py): whether `probabilities` are those of several
    choices, the likeliest of which is the answer, or that of one event. Such a task applies `self.calibration`. A task
    whose settings decide it sets it when it is made, before it is loaded."""
    counted_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of an outcome that the metrics page sums up as `handler_FIELD_total`: marks, numbers, or lists of what is
    marked; by default those of MARKS that the outcome has."""
    confidence_column: ClassVar[str] = "confidence"
    """The log column, if there is one, that says how sure an answer is, from 0 to 1."""
    label_type: ClassVar[type] = str
    """Of a true label: int, float or str; by default that of the first log column."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that the archive is verified with, besides those of the core."""
    explain_libraries: ClassVar[tuple[str, ...]] = ()
    """The same, where a recipe asks for explanations."""
    quick_explanation: ClassVar[Mapping[str, Any]] = {}
    """Options of an explain request that is answered soonest."""
    default_sample: ClassVar[Mapping[str, Any] | None] = None
    """A request for a recipe that is written for a model folder, where the user gives none."""
    hub_class: ClassVar[str | None] = None
    """The transformers class that loads and saves the weights; None where `model/` is a copy of the recipe's folder."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of further files in the weights' folder, which go into the archive beside what transformers saves."""
    model_suffixes: ClassVar[tuple[str, ...]] = ()
    """Of a lone file, such as `.onnx`, that `marctl build --from` makes a version of this task from."""

    store: FeatureStore | None = None
    """Set by a server, for a task that has `stored_features`."""

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self.settings = settings
        self.device = device
        self.calibration = settings.calibration
        """To be read at every prediction: whoever compares with the model's own library sets it to None."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Read the two types, and make what follows from them. Raises TypeError saying what the class lacks."""
        super().__init_subclass__(**options)
        types = type_arguments(cls)
        if types is None:
            return  # a parent has named them
        cls.question_type, cls.outcome_type = types
        own = cls.__dict__
        if "answer_type" not in own:
            cls.answer_type = stamped(cls.outcome_type)
        if "log_columns" not in own:
            cls.log_columns = log_columns_of(cls.outcome_type)
        if "counted_fields" not in own:
            names = {field.name for field in msgspec.structs.fields(cls.outcome_type)}
            cls.counted_fields = tuple(name for name in MARKS if name in names)
        if "label_type" not in own:
            primary = next((column.type for column in cls.log_columns), "str")
            cls.label_type = {"int": int, "float": float}.get(primary, str)

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load the model from an archive's `model/` folder. Raises LoadError naming the cure."""

    @abstractmethod
    def predict(self, questions: Sequence[Question], deadline: float) -> Sequence[Outcome | None]:
        """An outcome per question, in order; None for those not computed by `deadline` (time.monotonic seconds)."""

    def check(self, question: Question) -> None:
        """Raise a HandlerError for what the question's type alone cannot refuse, naming the field as `$.field`."""

    def complete(self, questions: Sequence[Question]) -> Sequence[Question | HandlerError]:
        """The questions with what they leave to a store, once for a batch, before an earlier answer is looked for."""
        return questions

    @property
    def stored_features(self) -> Specification | None:
        """Features that may stand in a store; None if a request must bring them all."""
        return None

    @property
    def row_features(self) -> Specification | None:
        """Of a loaded task whose questions are rows of a table, the features of one; None for all others."""
        return None

    def cost(self, questions: Sequence[Question]) -> int:
        """What a request of these questions costs, in `cost_unit`s."""
        return len(questions)

    def answer(self, question: Question, outcome: Outcome, stamp: Stamp) -> msgspec.Struct:
        """What the client reads."""
        fields = msgspec.structs.astuple(outcome)
        return self.answer_type(stamp.prediction_id, stamp.model, stamp.version, *fields, stamp.latency_ms)

    def log_values(self, question: Question, outcome: Outcome) -> Mapping[str, Any]:
        """The values of `log_columns`."""
        return {column.name: getattr(outcome, column.name) for column in self.log_columns}

    def fits(self, question: Question, outcome: Outcome) -> bool:
        """Whether an outcome that comes from the cache can be one of this question."""
        return True

    def probabilities(self, found: Any) -> Sequence[float]:
        """Those in an outcome or an answer: of each choice, or of an event's absence and of the event."""
        raise NotImplementedError(f"{type(self).__name__} gives no probabilities")

    def label_index(self, question: Question, label: Any) -> int:
        """Whose probability should be high: the place of a true label in `probabilities`."""
        return int(label)

    def lasts(self, outcome: Outcome) -> bool:
        """Whether the cache may keep this outcome, or the next equal question is to be computed anew."""
        return True

    def totals(self) -> Mapping[str, float]:
        """What a loaded task counts, for the metrics page, by names such as `handler_..._total`."""
        return {}

    @property
    def runtime(self) -> str:
        """What outcomes depend on besides the archive: libraries, number format, kind of device."""
        return kind_of(self.device)

    def warm_up(self) -> None:
        """Run the shapes that requests will bring, so that the first client does not wait for them."""

    def form(self) -> Form | None:
        """How bodies become questions and answers become bodies, where neither plain JSON nor a raw body will do."""
        return None

    def explainer(self) -> Task[Any, Any] | None:
        """A loaded task that answers explain requests, made once after `load`; None if this task explains nothing."""
        return None

    # --- for versions that are asked together (handlers/core/composite.py)

    @property
    def classes(self) -> Sequence[str] | None:
        """Of a loaded version, what its probabilities are of; None where every question brings its own."""
        return None

    @property
    def features_key(self) -> str | None:
        """Equal for loaded versions whose `featurize` gives the same; None if nobody else can use them."""
        return None

    def featurize(self, questions: Sequence[Question]) -> Any:
        """What `predict_from` computes with: token ids, a matrix."""
        return None

    def predict_from(self, questions: Sequence[Question], features: Any, deadline: float) -> Sequence[Outcome | None]:
        """The same as `predict`, from features that are there already."""
        return self.predict(questions, deadline)

    def explain(self, questions: Sequence[Question], outcomes: Sequence[Any], deadline: float) -> Sequence[Any]:
        """What `predict` of an explainer gives, of outcomes that are not its own: they say what was chosen."""
        raise NotSupported("this task explains no other version's outcomes")

    @classmethod
    def add_up(cls, answers: Sequence[Any], weights: Sequence[float]) -> Mapping[str, Any]:
        """Several versions' explanations of one outcome as their weighted sum: the fields of an answer that explain."""
        raise NotSupported("explanations of this task cannot be added up")

    @classmethod
    def with_probabilities(cls, outcomes: Sequence[Outcome], probabilities: Sequence[float]) -> Outcome:
        """One outcome with these probabilities; what else is in it comes from the outcomes, all of one question."""
        raise NotSupported("outcomes of this task have no probabilities")

    @classmethod
    def explain_types(cls) -> tuple[type[msgspec.Struct], type[msgspec.Struct]] | None:
        """Types of an explain request's question and answer; None if the task explains nothing."""
        return None

    @classmethod
    def suggest(cls, folder: Path) -> dict[str, Any]:
        """Settings for a recipe that is written for a model folder; empty to take the defaults."""
        return {}

    @classmethod
    def needed(cls, folder: Path) -> tuple[str, ...]:
        """Distributions that the model in a folder needs besides `libraries`, for a recipe that is written for it."""
        return ()

    @classmethod
    def default_samples(cls, folder: Path) -> list[Mapping[str, Any]]:
        """Requests for a recipe that is written for a model folder, where the user gives none; empty if it must."""
        return [] if cls.default_sample is None else [cls.default_sample]

    @classmethod
    def reference(cls, folder: Path, requests: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
        """What the model's own library answers, one request at a time, without the pipeline: the build's yardstick.

        Each entry is compared like a sample's `expected`. Empty if there is nothing to compare with.
        """
        return []

    @classmethod
    def portable(cls, folder: Path, settings: Settings) -> Portable | None:
        """The model in an archive's `model/` folder, to be written in another format; None where that cannot be done.

        Raises LoadError.
        """
        return None

    @classmethod
    def expected_faults(cls, request: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
        """What is wrong with a sample's `expected`, each fault beginning with its path; empty if nothing is."""
        known = {field.name for field in msgspec.structs.fields(cls.answer_type)}
        return [
            f".{name}: no such field of an answer; there are {', '.join(sorted(known))}"
            for name in expected
            if name not in known
        ]

    @classmethod
    def differences(cls, expected: Mapping[str, Any], answer: Mapping[str, Any], tolerance: float) -> list[str]:
        """Where an answer departs from a sample's `expected`; floating-point numbers may differ by `tolerance`."""
        return [
            text for name, wanted in expected.items() for text in different(name, wanted, answer.get(name), tolerance)
        ][:DIFFERENCES_SHOWN]

    @classmethod
    def is_right(cls, answer: Any, label: Any) -> bool:
        """Whether an answer agrees with a true label: by default, whether the first log column is the label."""
        return bool(cls.log_columns) and getattr(answer, cls.log_columns[0].name) == label

    @classmethod
    def label_fault(cls, question: Any, label: Any) -> str | None:
        """Why a label cannot be this question's; None if it can."""
        return None

    @classmethod
    def chance(cls, question: Any) -> float | None:
        """How often a guess is right; None where that cannot be said."""
        return None

    @classmethod
    def identity(cls, question: Any) -> bytes:
        """Equal for questions that ask the same, as an evaluation counts rows that repeat a training row."""
        return msgspec.json.encode(question)

    @classmethod
    def request_from_words(cls, words: Sequence[str], **options: Any) -> dict[str, Any]:
        """A request from the words of a command line; by default one word, the request's JSON. Raises ValueError."""
        if len(words) != 1:
            raise ValueError(f"expected one word, the request as JSON ({cls.example or '{...}'}), got {len(words)}")
        request = json.loads(words[0])
        if not isinstance(request, dict):
            raise ValueError(f"expected a JSON object ({cls.example or '{...}'}), got {words[0]}")
        return request

    @classmethod
    def show(cls, request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """An answer for a person at a terminal."""
        return json.dumps(answer, indent=2, ensure_ascii=False)

    @classmethod
    def text_of(cls, request: Mapping[str, Any]) -> str:
        """A request in one line, for reports."""
        return json.dumps(request, ensure_ascii=False)


def type_arguments(cls: type) -> tuple[type[msgspec.Struct], type[msgspec.Struct]] | None:
    """The two types in `class Name(Task[Question, Outcome])`; None if a parent has named them. Raises TypeError."""
    for base in cls.__dict__.get("__orig_bases__", ()):  # its own, not those that it inherits
        origin = typing.get_origin(base)
        if isinstance(origin, type) and issubclass(origin, Task):  # Task itself, or a generic class between
            question, outcome = typing.get_args(base)
            break
    else:
        if any(hasattr(parent, "question_type") for parent in cls.__mro__[1:]):
            return None
        raise TypeError(f"{cls.__name__} names no types; write class {cls.__name__}(Task[Question, Outcome])")
    if isinstance(question, TypeVar):
        return None  # a generic class between a task and this one
    for name, kind in (("question", question), ("outcome", outcome)):
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            raise TypeError(f"{cls.__name__}: its {name} type is {kind!r}; expected a subclass of msgspec.Struct")
    return question, outcome


def stamped(outcome: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """An answer type: the outcome's fields between the stamp's."""
    before = [("prediction_id", str), ("model", str), ("model_version", str)]
    hints = typing.get_type_hints(outcome, include_extras=True)
    own = [(field.name, hints[field.name]) for field in msgspec.structs.fields(outcome)]
    taken = {name for name, _ in (*before, ("latency_ms", float))} & {name for name, _ in own}
    if taken:
        raise TypeError(f"{outcome.__name__}.{min(taken)}: every answer has a field of this name; give it another one")
    return msgspec.defstruct("Answer", [*before, *own, ("latency_ms", float)], frozen=True)


def different(path: str, wanted: Any, given: Any, tolerance: float) -> Iterator[str]:
    """Each place at which two decoded JSON values differ."""
    if isinstance(wanted, Mapping) and isinstance(given, Mapping):
        for name, value in wanted.items():
            yield from different(f"{path}.{name}", value, given.get(name), tolerance)
    elif isinstance(wanted, list) and isinstance(given, list) and len(wanted) == len(given):
        for i, (one, other) in enumerate(zip(wanted, given, strict=True)):
            yield from different(f"{path}[{i}]", one, other, tolerance)
    elif isinstance(wanted, float) and isinstance(given, int | float) and not isinstance(given, bool):
        if not math.isclose(wanted, given, rel_tol=0, abs_tol=tolerance):
            yield f"{path} is {given}, expected {wanted} within {tolerance:g}"
    elif wanted != given:
        yield f"{path} is {given!r}, expected {wanted!r}"
