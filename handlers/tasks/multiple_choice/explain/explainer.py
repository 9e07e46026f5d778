"""Answers explain requests: a task of its own beside the predictions', so that parsing and errors are the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec

from handlers.core.errors import HandlerError, Invalid, LoadError
from handlers.core.settings import ExplanationSettings
from handlers.core.task import HTML, Parsed, Reply, Request, Task
from handlers.tasks.multiple_choice.explain import gradients, removal
from handlers.tasks.multiple_choice.explain.answer import ExplainedAnswer, explanation_of
from handlers.tasks.multiple_choice.explain.cases import Case, cases_of
from handlers.tasks.multiple_choice.explain.forward import WordModel
from handlers.tasks.multiple_choice.explain.outcome import Found
from handlers.tasks.multiple_choice.explain.page import page
from handlers.tasks.multiple_choice.explain.request import CheckedDecoder, ExplainQuestion, Method
from handlers.tasks.multiple_choice.explain.words import Aligned, Aligner
from handlers.tasks.multiple_choice.task import Choice, MultipleChoice, first_text

PROMISED = ("integrated_gradients", "shapley")
"""Methods whose scores add up; of the others nobody expects it."""
QUICKEST_FIRST: tuple[Method, ...] = ("gradient_x_input", "occlusion", "integrated_gradients", "shapley")
BASELINES = ("mask", "pad", "unk")
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A page needs nothing but its own styles; whatever else may get into it does not run."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A question's answer, and its cases with what was found."""

    choice: Choice
    cases: list[Case]
    found: list[Found]


class Explainer(Task[ExplainQuestion, Explained]):
    """Explains a multiple-choice task's answers. Its model must be in float32, with gradients possible."""

    question_type: ClassVar[type[msgspec.Struct]] = ExplainQuestion
    example: ClassVar[str] = '{"question": "...", "choices": ["...", "..."], "explain": {"method": "shapley"}}'

    def __init__(self, task: MultipleChoice, model: Any, limits: ExplanationSettings) -> None:
        settings = msgspec.structs.replace(task.settings, max_instances=limits.max_instances)
        super().__init__(task.name, task.version, settings)
        self._task = task
        self._limits = limits
        self._pairs = task.encoder
        self._aligner = Aligner(task.encoder.tokenizer)
        self._model = WordModel(model, task.encoder)
        self.baselines = baselines_of(task.encoder.tokenizer)
        self._totals: Counter[str] = Counter()
        self._bare = CheckedDecoder(limits, self.baselines)  # type: ignore[assignment]  # decodes, and checks more

    def _parse(self, request: Request) -> Parsed[ExplainQuestion] | HandlerError:
        parsed = super()._parse(replace(request, explain=False))
        if isinstance(parsed, Parsed) and prefers_page(request.header("accept") or ""):
            return replace(parsed, questions=[wants_page(question) for question in parsed.questions])
        return parsed

    def predict(self, questions: Sequence[ExplainQuestion], deadline: float) -> list[Explained | None]:
        """Answers first; then all questions' cases, those of one method together."""
        choices = self._task.predict(questions, deadline)
        prepared = [self._prepare(q, choice) for q, choice in zip(questions, choices, strict=True)]
        cases = [case for entry in prepared if isinstance(entry, list) for case in entry]
        found = iter(self._explain(cases, deadline))
        outcomes: list[Any] = []
        for choice, entry in zip(choices, prepared, strict=True):
            if not isinstance(entry, list):
                outcomes.append(entry)
                continue
            own = [next(found) for _ in entry]
            finished = [one for one in own if one is not None]
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
        """By one method. What comes first is explained even after the deadline, or nobody ever would be."""
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
            elif method == "occlusion":
                found.append(removal.occlusion(self._model, case, tokens_per_pass=most))
            else:
                found.append(removal.shapley(self._model, case, deadline, tokens_per_pass=most))
        return found

    def answer_of(
        self, question: ExplainQuestion, outcome: Explained, prediction_id: str, latency_ms: float
    ) -> ExplainedAnswer:
        plain = self._task.answer_of(question, outcome.choice, prediction_id, latency_ms)
        explanations = [
            explanation_of(case, found, question.choices[case.choice], self._baseline_name(case))
            for case, found in zip(outcome.cases, outcome.found, strict=True)
        ]
        return ExplainedAnswer(**msgspec.structs.asdict(plain), explanations=explanations)

    def _encode(self, parsed: Parsed[ExplainQuestion], answers: list[Any], headers: dict[str, str]) -> Reply:
        self._count([answer for answer in answers if isinstance(answer, ExplainedAnswer)])
        if not any(isinstance(q, ExplainQuestion) and q.explain.format == "html" for q in parsed.questions):
            return super()._encode(parsed, answers, headers)
        body = page(list(zip(parsed.questions, answers, strict=True))).encode()
        return Reply(body, headers=headers | {"content-security-policy": PAGE_POLICY}, content_type=HTML)

    def _count(self, answers: Sequence[ExplainedAnswer]) -> None:
        explanations = [explanation for answer in answers for explanation in answer.explanations]
        self._totals["handler_explanations_total"] += len(explanations)
        self._totals["handler_explanations_incomplete_total"] += sum(
            one.method in PROMISED and not one.complete for one in explanations
        )
        self._totals["handler_explanation_milliseconds_total"] += round(sum(one.compute_ms for one in explanations))

    def totals(self) -> dict[str, int]:
        """How many, how many of them did not add up although their method promises it, and how long they took."""
        return dict(self._totals)

    def _baseline_name(self, case: Case) -> str:
        if case.options.method == "gradient_x_input":
            return "zero"
        return case.options.baseline or next(iter(self.baselines))

    def weight(self, question: ExplainQuestion) -> int:
        return self._task.weight(question)

    def warm_up(self) -> None:
        """Explain one short question."""
        self.predict([ExplainQuestion("is water wet", ("yes", "no"))], deadline=float("inf"))


def prefers_page(accept: str) -> bool:
    """Whether an Accept header names HTML, and JSON not before it. Weights (`q=`) are not looked at."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "text/html" in kinds and "application/json" not in kinds[: kinds.index("text/html")]


def wants_page(question: ExplainQuestion | HandlerError) -> ExplainQuestion | HandlerError:
    """The same as a page, unless the question itself names a format."""
    if isinstance(question, HandlerError) or question.explain.format is not None:
        return question
    return msgspec.structs.replace(question, explain=msgspec.structs.replace(question.explain, format="html"))


def baselines_of(tokenizer: Any) -> dict[str, int]:
    """Names and ids of the tokens that can stand for an absent word, the best one first; raises LoadError for none."""
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in BASELINES}
    found = {name: id_ for name, id_ in ids.items() if id_ is not None}
    if not found:
        raise LoadError("the tokenizer has no mask, padding or unknown token that could stand for an absent word")
    return found
