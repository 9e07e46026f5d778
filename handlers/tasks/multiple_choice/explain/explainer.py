"""Answers explain requests: a task beside the one that predicts, so that both share one pipeline and its errors."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from marctl_handlers.core.columns import LogColumn
from marctl_handlers.core.errors import HandlerError, Invalid, LoadError
from marctl_handlers.core.forms import Form
from marctl_handlers.core.json_form import JsonForm
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import ExplanationSettings
from marctl_handlers.core.task import Task
from marctl_handlers.explanations.form import ExplainForm
from marctl_handlers.explanations.outcome import Found
from marctl_handlers.tasks.multiple_choice.explain import gradients, removal
from marctl_handlers.tasks.multiple_choice.explain.answer import ExplainedAnswer, explanation_of
from marctl_handlers.tasks.multiple_choice.explain.cases import Case, cases_of
from marctl_handlers.tasks.multiple_choice.explain.forward import WordModel
from marctl_handlers.tasks.multiple_choice.explain.page import answers_page
from marctl_handlers.tasks.multiple_choice.explain.request import ExplainQuestion, Method, faults
from marctl_handlers.tasks.multiple_choice.explain.weighted_sum import weighted_sums
from marctl_handlers.tasks.multiple_choice.explain.words import Aligned, Aligner
from marctl_handlers.tasks.multiple_choice.schema import LOG_COLUMNS, Choice, first_text

if TYPE_CHECKING:
    from marctl_handlers.tasks.multiple_choice.task import MultipleChoice

COMPLETE = ("integrated_gradients", "shapley")
"""Methods that guarantee completeness: their scores sum to the target's change."""
QUICKEST_FIRST: tuple[Method, ...] = ("gradient_x_input", "occlusion", "integrated_gradients", "shapley")
BASELINES = ("mask", "pad", "unk")


class Explained(msgspec.Struct, frozen=True):
    """A question's answer, and its cases with what was found."""

    choice: Choice
    cases: list[Any]
    found: list[Any]


class Explainer(Task[ExplainQuestion, Explained]):
    """Explains a loaded multiple-choice task's answers. Its model must be in float32, with gradients possible."""

    answer_type: ClassVar[type[msgspec.Struct]] = ExplainedAnswer
    example: ClassVar[str] = '{"question": "...", "choices": ["...", "..."], "explain": {"method": "shapley"}}'
    cost_unit: ClassVar[str] = "tokens"
    explains: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    log_columns: ClassVar[tuple[LogColumn, ...]] = LOG_COLUMNS

    def __init__(self, task: MultipleChoice) -> None:
        self._limits = task.settings.explanations or ExplanationSettings()
        super().__init__(msgspec.structs.replace(task.settings, max_instances=self._limits.max_instances), task.device)
        self._task = task
        self._pairs = task.encoder
        self._aligner = Aligner(task.encoder.tokenizer)
        self._model = WordModel(task.model.model, task.encoder, task.calibration)  # type: ignore[attr-defined]  # a TorchRuntime's
        self.baselines = baselines_of(task.encoder.tokenizer)
        self._totals: dict[str, float] = defaultdict(float)

    def load(self, folder: Path) -> None:
        """Nothing: the model is the task's."""

    def form(self) -> Form:
        plain = JsonForm(ExplainQuestion, self.example, self._limits.max_instances)
        return ExplainForm(plain, answers_page)

    def check(self, question: ExplainQuestion) -> None:
        """Raises Invalid for options beyond the version's limits."""
        for fault, path in faults(question, self._limits, self.baselines):
            raise Invalid(f"{fault} - at `$.explain.{path}`; expected {self.example}")

    def cost(self, questions: Sequence[ExplainQuestion]) -> int:
        return self._task.cost(questions)

    def predict(self, questions: Sequence[ExplainQuestion], deadline: float) -> list[Any]:
        """Answers first; then their explanations."""
        return self.explain(questions, self._task.predict(questions, deadline), deadline)

    def explain(
        self, questions: Sequence[ExplainQuestion], choices: Sequence[Choice | None], deadline: float
    ) -> list[Any]:
        """All questions' cases, those of one method together."""
        prepared = [self._prepare(q, choice) for q, choice in zip(questions, choices, strict=True)]
        cases = [case for entry in prepared if isinstance(entry, list) for case in entry]
        found = iter(self._explain(cases, deadline))
        outcomes: list[Any] = []
        for choice, entry in zip(choices, prepared, strict=True):
            if not isinstance(entry, list):
                outcomes.append(entry)
                continue
            own = [next(found) for _ in entry]
            finished = [result for result in own if result is not None]
            whole = choice is not None and len(finished) == len(own)
            outcomes.append(Explained(choice, entry, finished) if choice and whole else None)
        return outcomes

    def _prepare(self, question: ExplainQuestion, choice: Choice | None) -> list[Case] | HandlerError | None:
        """The question's cases; None if it was not answered in time."""
        if choice is None:
            return None
        try:
            texts: dict[str, Aligned] = self._aligner.align([first_text(question), *question.choices])
            cases = cases_of(question, choice.probabilities, texts, self._pairs, self.baselines)
            self._refuse_many_words(cases)
            return cases
        except HandlerError as err:
            return err

    def _refuse_many_words(self, cases: Sequence[Case]) -> None:
        most = self._limits.max_words
        for case in cases:
            if case.options.method in ("shapley", "occlusion") and len(case.words) > most:
                raise Invalid(
                    f"expected at most {most} words for the method {case.options.method}, got {len(case.words)}; "
                    "shorten the question, or use integrated_gradients"
                )

    def _explain(self, cases: Sequence[Case], deadline: float) -> list[Found | None]:
        """In order; the quick methods are computed first. None where the deadline came before."""
        found: dict[int, Found | None] = {}
        for method in QUICKEST_FIRST:
            places = [i for i, case in enumerate(cases) if case.options.method == method]
            results = self._explain_by(method, [cases[i] for i in places], deadline, first=not found)
            found.update(zip(places, results, strict=True))
        return [found[i] for i in range(len(cases))]

    def _explain_by(
        self, method: Method, cases: Sequence[Case], deadline: float, *, first: bool
    ) -> Sequence[Found | None]:
        """By one method. The first case is explained even past the deadline, so that some progress is always made."""
        most = self._limits.tokens_per_pass
        if not cases or (not first and time.monotonic() > deadline):
            return [None] * len(cases)
        if method == "gradient_x_input":
            return gradients.gradient_x_input(self._model, cases, deadline, tokens_per_pass=most)
        if method == "integrated_gradients":
            steps = self._limits.max_steps
            return gradients.integrated_gradients(self._model, cases, deadline, max_steps=steps, tokens_per_pass=most)
        found: list[Found | None] = []
        for case in cases:
            if found and time.monotonic() > deadline:
                found.append(None)
                continue
            by = removal.occlusion if method == "occlusion" else removal.shapley
            found.append(by(self._model, case, deadline, tokens_per_pass=most))
        return found

    def answer(self, question: ExplainQuestion, outcome: Explained, stamp: Stamp) -> ExplainedAnswer:
        plain = self._task.answer(question, outcome.choice, stamp)
        explanations = [
            explanation_of(case, found, question.choices[case.choice], self._baseline_name(case))
            for case, found in zip(outcome.cases, outcome.found, strict=True)
        ]
        self._totals["handler_explanations_total"] += len(explanations)
        self._totals["handler_explanations_incomplete_total"] += sum(
            one.method in COMPLETE and not one.complete for one in explanations
        )
        self._totals["handler_explanation_seconds_total"] += sum(one.compute_ms for one in explanations) / 1000
        return ExplainedAnswer(**msgspec.structs.asdict(plain), explanations=explanations)

    @classmethod
    def add_up(cls, answers: Sequence[ExplainedAnswer], weights: Sequence[float]) -> Mapping[str, Any]:
        return {"explanations": weighted_sums([answer.explanations for answer in answers], weights)}

    def log_values(self, question: ExplainQuestion, outcome: Explained) -> Mapping[str, Any]:
        return self._task.log_values(question, outcome.choice)

    def totals(self) -> dict[str, float]:
        """Counts explanations, those of complete methods that did not add up, and seconds spent."""
        return dict(self._totals)

    def _baseline_name(self, case: Case) -> str:
        if case.options.method == "gradient_x_input":
            return "zero"
        return case.options.baseline or next(iter(self.baselines))

    def warm_up(self) -> None:
        """Explain one short question."""
        self.predict([ExplainQuestion("is water wet", ("yes", "no"))], deadline=float("inf"))


def baselines_of(tokenizer: Any) -> dict[str, int]:
    """Names and ids of the tokens that can stand for an absent word, the best one first; raises LoadError for none."""
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in BASELINES}
    found = {name: id_ for name, id_ in ids.items() if id_ is not None}
    if not found:
        raise LoadError("the tokenizer has no mask, padding or unknown token that could stand for an absent word")
    return found
