"""Rows of features, scored by a model of XGBoost, ONNX or PyTorch: what classification and regression share."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.devices import kind_of
from marctl_handlers.core.errors import HandlerError, LoadError
from marctl_handlers.core.forms import Form
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.features import Features, FeaturesInvalid, Resolved, Specification, read_features
from marctl_handlers.features.entity import request_faults
from marctl_handlers.features.specification import FEATURES_FILE
from marctl_handlers.tasks.tabular.completion import Asked, completed
from marctl_handlers.tasks.tabular.form import RowForm, faulty
from marctl_handlers.tasks.tabular.runtimes.choose import SUFFIXES, device_of, libraries_of, load_runtime
from marctl_handlers.tasks.tabular.runtimes.runtime import Runtime
from marctl_handlers.tasks.tabular.schema import TabularSettings, Target

Outcome = TypeVar("Outcome", bound=msgspec.Struct)
DECIMALS = 6
WARM_UP_ROWS = (1, 32)


class Tabular(Task[Asked, Outcome]):
    """A loaded model with its feature specification."""

    settings: TabularSettings
    settings_type: ClassVar[type[Settings]] = TabularSettings
    example: ClassVar[str] = '{"features": {"income": 1200, ...}}'
    cost_unit: ClassVar[str] = "rows"
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    model_suffixes: ClassVar[tuple[str, ...]] = tuple(SUFFIXES)
    explain_libraries: ClassVar[tuple[str, ...]] = ("captum", "torch")
    quick_explanation: ClassVar[Mapping[str, Any]] = {"samples": 2}
    explained_type: ClassVar[type[msgspec.Struct]]
    """Of an answer with its explanations."""
    targets: ClassVar[tuple[Target, ...]]
    """What can be explained of an answer, the default first."""
    features: Features
    model: Runtime

    def load(self, folder: Path) -> None:
        """`features.json`, and a model that reads what it encodes."""
        self._folder = folder
        self.device = device_of(folder, self.device, self.settings.device)
        self.features, self.model = opened(folder, self.settings.threads, self.device)

    def form(self) -> Form:
        return RowForm(self.question_type, self.example, self.settings.max_instances, self.features)

    def check(self, question: Asked) -> None:
        """Raises Invalid for entities that the specification does not know."""
        if question.entity and (faults := request_faults(self.features.specification.entities, question.entity)):
            raise faulty(faults, "$.entity")

    @property
    def row_features(self) -> Specification:
        return self.features.specification

    @property
    def stored_features(self) -> Specification | None:
        return self.features.specification if self.features.specification.entities else None

    def complete(self, questions: Sequence[Asked]) -> list[Asked | HandlerError]:
        """With the stored features of the entities that they name, under those that they bring."""
        return completed(questions, self.store)

    def predict(self, questions: Sequence[Asked], deadline: float) -> list[Any]:
        """All rows through the specification and the model together; a row with faults gets them as its error."""
        return self.predict_from(questions, self.featurize(questions), deadline)

    @cached_property
    def features_key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self.features.specification)).hexdigest()

    def featurize(self, questions: Sequence[Asked]) -> tuple[Resolved, NDArray[np.float32]]:
        """The rows' values, and what the model reads of them, shape (rows, columns)."""
        resolved = self.features.resolve([question.features for question in questions])
        return resolved, self.features.encode(resolved)

    def predict_from(self, questions: Sequence[Asked], features: Any, deadline: float) -> list[Any]:
        resolved, encoded = features
        scores = self.model.scores(encoded)
        imputed, clipped = (
            resolved.names(marks, self.features.features) for marks in (resolved.imputed, resolved.clipped)
        )
        outcomes = self.outcomes(refuse_odd(scores, resolved), imputed, clipped)
        if not resolved.faults:
            return outcomes
        return [
            faulty(resolved.faults[i], "$.features") if i in resolved.faults else outcome
            for i, outcome in enumerate(outcomes)
        ]

    def explainer(self) -> Task[Any, Any]:
        from marctl_handlers.tasks.tabular.explain.explainer import Explainer

        return Explainer(self, self._folder)

    @classmethod
    def explain_types(cls) -> tuple[type[msgspec.Struct], type[msgspec.Struct]]:
        from marctl_handlers.tasks.tabular.explain.request import ExplainQuestion

        return ExplainQuestion, cls.explained_type

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes; none of a regression."""
        return ()

    @abstractmethod
    def explained_label(self, outcome: Outcome) -> int | None:
        """Place of the label that an explanation is about, where the request names none."""

    @abstractmethod
    def target(self, scores: NDArray[Any], target: Target, label: int | None) -> NDArray[np.float64]:
        """What is explained of each row's scores, shape (rows,)."""

    @abstractmethod
    def outcomes(self, scores: NDArray[Any], imputed: list[list[str]], clipped: list[list[str]]) -> list[Outcome]:
        """One a row of the model's scores, shape (rows, outputs), all finite."""

    def cost(self, questions: Sequence[Asked]) -> int:
        return len(questions)

    @property
    def runtime(self) -> str:
        return f"{self.model.name} {kind_of(self.device)}"

    def warm_up(self) -> None:
        for rows in WARM_UP_ROWS:
            self.model.scores(np.zeros((rows, len(self.features.columns)), np.float32))

    @classmethod
    def request_from_words(cls, words: Sequence[str], **options: Any) -> dict[str, Any]:
        """Features as NAME=VALUE, or the request as JSON."""
        if len(words) == 1 and words[0].lstrip().startswith("{"):
            return super().request_from_words(words, **options)
        if not all("=" in word for word in words):
            raise ValueError(f"expected features as NAME=VALUE, or the request as JSON ({cls.example})")
        return {"features": {name: value_of(text) for name, _, text in (word.partition("=") for word in words)}}

    @classmethod
    def needed(cls, folder: Path) -> tuple[str, ...]:
        return libraries_of(folder)

    @classmethod
    def default_samples(cls, folder: Path) -> list[Mapping[str, Any]]:
        """One row of values that the specification would put in or allows, and one of nothing that may be missing."""
        from marctl_handlers.tasks.tabular.sample_rows import sample_rows

        return sample_rows(read_features(folder))


def value_of(text: str) -> Any:
    """A word of a command line as a feature's value: JSON where it is some, else text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def marks_of(answer: Mapping[str, Any]) -> str:
    """What was imputed and clipped, for a terminal; empty if nothing was."""
    told = [f"\n  {name}: {', '.join(answer[name])}" for name in ("imputed", "clipped") if answer[name]]
    return "".join(told)


def opened(folder: Path, threads: int, device: str = "cpu") -> tuple[Features, Runtime]:
    """The specification and the model in a folder. Raises LoadError."""
    try:
        features = Features(read_features(folder))
    except FeaturesInvalid as err:
        raise LoadError(f"{FEATURES_FILE}: {err}") from err
    return features, load_runtime(folder, threads, [column.name for column in features.columns], device)


def outputs_of(features: Features, model: Runtime) -> int:
    """Numbers that the model gives for a row."""
    return int(model.scores(np.zeros((1, len(features.columns)), np.float32)).shape[1])


def refuse_odd(scores: NDArray[Any], resolved: Resolved) -> NDArray[Any]:
    """The scores; those of a row with faults are equal and sum to 1. Raises ArithmeticError if one is not finite."""
    if resolved.faults:
        scores = scores.copy()
        scores[list(resolved.faults)] = 1 / scores.shape[1]
    if not np.isfinite(scores).all():
        raise ArithmeticError("the model gave a value that is not a finite number")
    return scores
