"""Answers explain requests: a task beside the one that predicts, so that both share one pipeline and its errors."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.errors import HandlerError, Invalid
from marctl_handlers.core.forms import Form
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import ExplanationSettings
from marctl_handlers.core.task import Task
from marctl_handlers.explanations.form import ExplainForm
from marctl_handlers.explanations.outcome import Found
from marctl_handlers.explanations.weighted_sum import summed_figures, summed_scores
from marctl_handlers.features import Resolved
from marctl_handlers.features.encode import Encoded
from marctl_handlers.tasks.tabular.completion import completed
from marctl_handlers.tasks.tabular.explain.answer import DIGITS, Explanation, FeatureScore
from marctl_handlers.tasks.tabular.explain.background import read_background
from marctl_handlers.tasks.tabular.explain.page import answers_page
from marctl_handlers.tasks.tabular.explain.reasons import reasons_of
from marctl_handlers.tasks.tabular.explain.request import ExplainQuestion, Method, Options, faults
from marctl_handlers.tasks.tabular.form import RowForm
from marctl_handlers.tasks.tabular.runtimes.xgboost_runtime import XGBoostRuntime
from marctl_handlers.tasks.tabular.schema import Target

if TYPE_CHECKING:
    from marctl_handlers.tasks.tabular.task import Tabular


class Case(msgspec.Struct, frozen=True):
    """One row to be explained: its place in the batch, its options, and what of it is explained."""

    place: int
    options: Options
    method: Method
    target: Target
    label: int | None
    """Place of the label; None for a regression."""


class Explained(msgspec.Struct, frozen=True):
    """A row's outcome, and what was found of it."""

    outcome: Any
    case: Case
    found: Any
    features: list[FeatureScore]
    """Without scores."""


class Explainer(Task[ExplainQuestion, Explained]):
    """Explains a loaded tabular task's answers."""

    answer_type: ClassVar[type[msgspec.Struct]] = msgspec.Struct
    example: ClassVar[str] = '{"features": {"income": 1200, ...}, "explain": {"method": "shapley"}}'
    cost_unit: ClassVar[str] = "rows"
    explains: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    log_columns: tuple[LogColumn, ...]  # type: ignore[misc]  # those of its task

    def __init__(self, task: Tabular[Any, Any], folder: Path) -> None:
        self._limits = task.settings.explanations or ExplanationSettings()
        super().__init__(msgspec.structs.replace(task.settings, max_instances=self._limits.max_instances), task.device)
        self._task = task
        self.log_columns = task.log_columns
        self._baseline, self._background = read_background(folder, task.features)
        names = [feature.name for feature in task.features.features]
        self._feature_of = np.array([names.index(column.feature) for column in task.features.columns])
        trees = isinstance(task.model, XGBoostRuntime) and task.model.additive
        self.methods: tuple[Method, ...] = ("tree_shap", "shapley") if trees else ("shapley",)
        self._totals: dict[str, float] = defaultdict(float)

    def load(self, folder: Path) -> None:
        """Nothing: the model is the task's."""

    def form(self) -> Form:
        plain = RowForm(ExplainQuestion, self.example, self._limits.max_instances, self._task.features)
        return ExplainForm(plain, answers_page)

    def check(self, question: ExplainQuestion) -> None:
        """Raises Invalid for options that this version does not have."""
        self._task.check(question)
        for fault, path in faults(question.explain, self._limits, self.methods, self._task.labels):
            raise Invalid(f"{fault} - at `$.explain.{path}`; expected {self.example}")

    def complete(self, questions: Sequence[ExplainQuestion]) -> list[ExplainQuestion | HandlerError]:
        return completed(questions, self.store)

    def predict(self, questions: Sequence[ExplainQuestion], deadline: float) -> list[Any]:
        """Answers first; then their explanations."""
        return self.explain(questions, self._task.predict(questions, deadline), deadline)

    def explain(self, questions: Sequence[ExplainQuestion], outcomes: Sequence[Any], deadline: float) -> list[Any]:
        """All rows that trees explain at once, then the others, one by one."""
        features = self._task.features
        outcomes = list(outcomes)
        resolved = features.resolve([question.features for question in questions])
        encoded = features.encode(resolved)
        cases = [
            self._case(i, question, outcome)
            for i, (question, outcome) in enumerate(zip(questions, outcomes, strict=True))
            if not isinstance(outcome, HandlerError)
        ]
        for case, found in self._explain(cases, encoded, deadline):
            told = None if found is None else self._told(questions[case.place], resolved, case.place)
            outcomes[case.place] = None if told is None else Explained(outcomes[case.place], case, found, told)
        return outcomes

    def _case(self, place: int, question: ExplainQuestion, outcome: Any) -> Case:
        options, labels = question.explain, self._task.labels
        target: Target = options.target or ("logit" if labels else "value")
        suited = [method for method in self.methods if target != "probability" or method != "tree_shap"]
        wanted = "shapley" if options.samples is not None else options.method
        label = self._task.explained_label(outcome) if options.label is None else labels.index(options.label)
        return Case(place, options, wanted or suited[0], target, label)

    def _explain(self, cases: Sequence[Case], encoded: Encoded, deadline: float) -> list[tuple[Case, Found | None]]:
        """The first row is explained even past the deadline, so that some progress is always made."""
        trees = [case for case in cases if case.method == "tree_shap"]
        found: list[tuple[Case, Found | None]] = list(zip(trees, self._by_trees(trees, encoded), strict=True))
        for case in cases:
            if case.method == "shapley":
                late = bool(found) and time.monotonic() > deadline
                found.append((case, None if late else self._by_removal(case, encoded, deadline)))
        return found

    def _by_trees(self, cases: Sequence[Case], encoded: Encoded) -> list[Found]:
        from marctl_handlers.tasks.tabular.explain.trees import tree_shap

        if not cases:
            return []
        assert isinstance(self._task.model, XGBoostRuntime)
        # One output is the second of two labels: the first one's logit is its negative.
        single = self._task.model.outputs == 1
        outputs = [0 if single else case.label or 0 for case in cases]
        found = tree_shap(self._task.model, self._task.features, encoded[[c.place for c in cases]], outputs)
        return [negative(one) if single and case.label == 0 else one for case, one in zip(cases, found, strict=True)]

    def _by_removal(self, case: Case, encoded: Encoded, deadline: float) -> Found | None:
        from marctl_handlers.tasks.tabular.explain.removal import RowGame, shapley

        def model(rows: Encoded) -> Any:
            return self._task.target(self._task.model.scores(rows), case.target, case.label)

        game = RowGame(model, encoded[case.place], self._background, self._feature_of, deadline)
        return shapley(game, case.options.samples)

    def _told(self, question: ExplainQuestion, resolved: Resolved, row: int) -> list[FeatureScore]:
        """Every feature with its value and marks; of a hashed one, what was sent."""
        shown = self._task.features.shown(resolved, row)
        return [
            FeatureScore(
                feature=feature.name,
                value=question.features.get(feature.name)
                if feature.is_category and not feature.categories
                else shown[feature.name],
                score=0.0,
                unit=feature.unit,
                imputed=bool(resolved.imputed[i, row]),
                clipped=bool(resolved.clipped[i, row]),
                protected=feature.protected,
            )
            for i, feature in enumerate(self._task.features.features)
        ]

    def answer(self, question: ExplainQuestion, outcome: Explained, stamp: Stamp) -> msgspec.Struct:
        plain = self._task.answer(question, outcome.outcome, stamp)
        explanation = self._explanation(outcome)
        self._totals["handler_explanations_total"] += 1
        self._totals["handler_explanations_incomplete_total"] += not explanation.complete
        self._totals["handler_explanation_seconds_total"] += explanation.compute_ms / 1000
        answer_type: Any = self._task.explained_type
        explained: msgspec.Struct = answer_type(**msgspec.structs.asdict(plain), explanations=[explanation])
        return explained

    @classmethod
    def add_up(cls, answers: Sequence[Any], weights: Sequence[float]) -> Mapping[str, Any]:
        cases = zip(*(answer.explanations for answer in answers), strict=True)
        return {"explanations": [weighted_sum(case, weights) for case in cases]}

    def _explanation(self, outcome: Explained) -> Explanation:
        case, found = outcome.case, outcome.found
        label = "" if case.label is None else self._task.labels[case.label]
        spread = found.spread or [None] * len(found.scores)
        scores = [
            msgspec.structs.replace(
                one, score=round(score, DIGITS), standard_error=None if error is None else round(error, DIGITS)
            )
            for one, score, error in zip(outcome.features, found.scores, spread, strict=True)
        ]
        return Explanation(
            label=label,
            method=case.method,
            target=case.target,
            baseline="training rows" if case.method == "tree_shap" else self._baseline,
            **found.figures(DIGITS),
            features=scores,
            reasons=reasons_of(scores, case.target, label),
        )

    def log_values(self, question: ExplainQuestion, outcome: Explained) -> Mapping[str, Any]:
        return self._task.log_values(question, outcome.outcome)

    def totals(self) -> dict[str, float]:
        """Counts explanations, those that did not add up, and seconds spent."""
        return dict(self._totals)

    def warm_up(self) -> None:
        """Explain the background's first row, by every method."""
        row = self._background[:1]
        cases = [Case(0, Options(), method, self._task.targets[0], None) for method in self.methods]
        label = 1 if self._task.labels else None
        self._explain([msgspec.structs.replace(case, label=label) for case in cases], row, float("inf"))


def weighted_sum(parts: Sequence[Explanation], weights: Sequence[float]) -> Explanation:
    """Of versions with the same features, in the same order."""
    features = [
        msgspec.structs.replace(same[0], **summed_scores(list(zip(same, weights, strict=True)), DIGITS))
        for same in zip(*(part.features for part in parts), strict=True)
    ]
    first = parts[0]
    reasons = reasons_of(features, first.target, first.label)
    figures = summed_figures(parts, weights, DIGITS)
    return msgspec.structs.replace(first, **figures, features=features, reasons=reasons)


def negative(found: Found) -> Found:
    """Of the other one of two labels."""
    return Found(
        [-score for score in found.scores], -found.value, -found.baseline_value, found.seconds, exact=found.exact
    )
