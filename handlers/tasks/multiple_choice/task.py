"""Multiple-choice questions, answered by any `AutoModelForMultipleChoice`.

Each choice is one row: (context and question, choice). The model scores the rows; a question's probabilities are the
softmax over its choices' scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from marctl_handlers.core.calibration import Temperature, softmax
from marctl_handlers.core.columns import Column, LogColumn
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.tasks.multiple_choice.schema import LOG_COLUMNS, Answer, Choice, Question, pairs
from marctl_handlers.text.settings import TextSettings

if TYPE_CHECKING:
    from marctl_handlers.core.portable import Portable
    from marctl_handlers.text.runtime import Runtime
    from marctl_handlers.text.tokenization import PairEncoder, Row

BAR = 24
"""Characters of a probability of 1 at a terminal."""


class MultipleChoice(Task[Question, Choice]):
    """Answers multiple-choice questions."""

    settings: TextSettings
    settings_type: ClassVar[type[Settings]] = TextSettings
    answer_type: ClassVar[type[msgspec.Struct]] = Answer
    example: ClassVar[str] = '{"question": "...", "choices": ["...", "..."]}'
    cost_unit: ClassVar[str] = "tokens"
    quick_explanation: ClassVar[Mapping[str, Any]] = {"method": "gradient_x_input"}
    default_sample: ClassVar[Mapping[str, Any] | None] = {
        "question": "What do people use to cut bread?",
        "choices": ["a knife", "a pillow", "a cloud"],
    }
    hub_class: ClassVar[str | None] = "AutoModelForMultipleChoice"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    explain_libraries: ClassVar[tuple[str, ...]] = ("captum",)
    inputs: ClassVar[tuple[Column, ...]] = (
        Column("question", "BYTES"),
        Column("choices", "BYTES", wide=True),
        Column("context", "BYTES", optional=True),
    )
    outputs = (
        Column("prediction", "INT64"),
        Column("label", "BYTES"),
        Column("confidence", "FP32"),
        Column("probabilities", "FP32", wide=True),
        Column("truncated", "BOOL"),
    )
    log_columns: ClassVar[tuple[LogColumn, ...]] = LOG_COLUMNS
    gives_probabilities_of: Literal["choices", "event"] | None = "choices"
    calibration: Temperature | None
    encoder: PairEncoder
    model: Runtime

    def load(self, folder: Path) -> None:
        """From a `save_pretrained` folder; the version's samples, beside it, show the ranges of 8-bit integers."""
        if self.settings.explanations is not None:
            self._load_for_explaining(folder)
            return
        from marctl_handlers.text.choose import load_runtime
        from marctl_handlers.text.saved_tokenizer import open_tokenizer
        from marctl_handlers.text.tokenization import PairEncoder

        self.encoder = PairEncoder(open_tokenizer(folder), self.settings.max_tokens)
        samples = self._sample_rows(folder) if self.settings.precision == "int8" else []
        assert self.hub_class is not None
        self.model = load_runtime(folder, self.hub_class, self.encoder, self.settings, self.device, samples)

    def _load_for_explaining(self, folder: Path) -> None:
        """In float32 and by the model's own code, which has gradients."""
        import torch

        from marctl_handlers.text.hub import load_model, load_tokenizer
        from marctl_handlers.text.tokenization import PairEncoder
        from marctl_handlers.text.torch_runtime import TorchRuntime

        torch.set_num_threads(self.settings.threads)
        self.encoder = PairEncoder(load_tokenizer(folder), self.settings.max_tokens)
        assert self.hub_class is not None
        model = load_model(folder, self.hub_class, torch.float32)
        self.model = TorchRuntime.of(model, self.encoder, self.settings, self.device)

    def _sample_rows(self, folder: Path) -> list[Row]:
        from marctl_handlers.core.samples import read_samples

        asked = [msgspec.convert(sample.request, Question) for sample in read_samples(folder.parent)]
        return self.encoder.encode([pair for question in asked for pair in pairs(question)])

    def predict(self, questions: Sequence[Question], deadline: float) -> list[Choice | None]:
        """All questions' choices through the model together."""
        return self.predict_from(questions, self.featurize(questions), deadline)

    @property
    def features_key(self) -> str | None:
        return self.encoder.key

    def featurize(self, questions: Sequence[Question]) -> dict[str, list[int]]:
        """Token ids of each distinct text."""
        return self.encoder.ids_of([pair for question in questions for pair in pairs(question)])

    def predict_from(self, questions: Sequence[Question], features: Any, deadline: float) -> list[Choice | None]:
        rows = self.encoder.rows([pair for question in questions for pair in pairs(question)], features)
        scores = self.model.run(rows, deadline)
        outcomes: list[Choice | None] = []
        start = 0
        for question in questions:
            end = start + len(question.choices)
            truncated = any(row.truncated for row in rows[start:end])
            outcomes.append(choice_of(scores[start:end], truncated, self.calibration))
            start = end
        return outcomes

    def cost(self, questions: Sequence[Question]) -> int:
        """Tokens of all rows; only what may be large is tokenized to be counted."""
        at_most = sum(len(question.choices) for question in questions) * self.settings.max_tokens
        if at_most <= self.settings.small_cost:
            return at_most
        return self.encoder.count([pair for question in questions for pair in pairs(question)])

    def answer(self, question: Question, outcome: Choice, stamp: Stamp) -> Answer:
        index = outcome.index
        return Answer(
            prediction_id=stamp.prediction_id,
            model=stamp.model,
            model_version=stamp.version,
            prediction=index,
            label=question.choices[index],
            confidence=round(outcome.probabilities[index], 6),
            probabilities=[round(p, 6) for p in outcome.probabilities],
            truncated=outcome.truncated,
            latency_ms=stamp.latency_ms,
        )

    def log_values(self, question: Question, outcome: Choice) -> Mapping[str, Any]:
        index = outcome.index
        return {
            "prediction": index,
            "confidence": round(outcome.probabilities[index], 6),
            "probabilities": [round(p, 6) for p in outcome.probabilities],
        }

    def probabilities(self, found: Choice | Answer) -> list[float]:
        return found.probabilities

    def fits(self, question: Question, outcome: Choice) -> bool:
        found = outcome.probabilities
        return len(found) == len(question.choices) and abs(math.fsum(found) - 1) < 1e-6 and min(found) >= 0

    @property
    def runtime(self) -> str:
        return self.model.runtime

    def warm_up(self) -> None:
        self.model.warm_up()

    def explainer(self) -> Task[Any, Any]:
        from marctl_handlers.core.errors import LoadError

        try:
            from marctl_handlers.tasks.multiple_choice.explain.explainer import Explainer
        except ImportError as err:
            raise LoadError(f"explanations need Captum ({err}); pip install captum") from err
        return Explainer(self)

    @classmethod
    def with_probabilities(cls, outcomes: Sequence[Choice], probabilities: Sequence[float]) -> Choice:
        return Choice(list(probabilities), any(outcome.truncated for outcome in outcomes))

    @classmethod
    def explain_types(cls) -> tuple[type[msgspec.Struct], type[msgspec.Struct]]:
        from marctl_handlers.tasks.multiple_choice.explain.answer import ExplainedAnswer
        from marctl_handlers.tasks.multiple_choice.explain.request import ExplainQuestion

        return ExplainQuestion, ExplainedAnswer

    @classmethod
    def suggest(cls, folder: Path) -> dict[str, Any]:
        from marctl_handlers.text.hub import token_limit

        return {"max_tokens": token_limit(folder)}

    @classmethod
    def reference(cls, folder: Path, requests: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
        from marctl_handlers.tasks.multiple_choice.reference import plain_answers

        assert isinstance(settings, TextSettings)
        return plain_answers(folder, requests, settings.max_tokens)

    @classmethod
    def portable(cls, folder: Path, settings: Settings) -> Portable:
        from marctl_handlers.tasks.multiple_choice.portable import portable

        assert isinstance(settings, TextSettings)
        assert cls.hub_class is not None
        return portable(folder, cls.hub_class, settings)

    @classmethod
    def expected_faults(cls, request: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
        faults, count = super().expected_faults(request, expected), len(request["choices"])
        prediction, probabilities = expected.get("prediction"), expected.get("probabilities")
        if not isinstance(prediction, int) or not 0 <= prediction < count:
            faults.append(f".prediction: {prediction!r}, but there are {count} choices, counted from 0")
        if probabilities is not None and (not isinstance(probabilities, list) or len(probabilities) != count):
            faults.append(f".probabilities: expected {count} numbers, one per choice, got {probabilities!r}")
        return faults

    @classmethod
    def differences(cls, expected: Mapping[str, Any], answer: Mapping[str, Any], tolerance: float) -> list[str]:
        """Two choices whose expected probabilities lie within twice the tolerance may change places."""
        found = []
        wanted, given = expected.get("probabilities"), answer.get("probabilities") or []
        chosen, right = answer.get("prediction"), expected["prediction"]
        tied = wanted is not None and chosen in range(len(wanted)) and wanted[chosen] >= wanted[right] - 2 * tolerance
        if chosen != right and not tied:
            found.append(f"prediction is {chosen}, expected {right}")
        if wanted is not None:
            worst = max((abs(a - b) for a, b in zip(wanted, given, strict=False)), default=0.0)
            if len(wanted) != len(given) or not worst <= tolerance:
                found.append(f"probabilities are {given}, expected {wanted} within {tolerance:g}")
        rest = {name: value for name, value in expected.items() if name not in ("prediction", "probabilities")}
        return found + super().differences(rest, answer, tolerance)

    @classmethod
    def label_fault(cls, question: Question, label: int) -> str | None:
        count = len(question.choices)
        return None if 0 <= label < count else f"label is {label}, but there are {count} choices, counted from 0"

    @classmethod
    def chance(cls, question: Question) -> float:
        return 1 / len(question.choices)

    @classmethod
    def identity(cls, question: Question) -> bytes:
        """The choices in whatever order."""
        return msgspec.json.encode((question.context, question.question, sorted(set(question.choices))))

    @classmethod
    def request_from_words(cls, words: Sequence[str], **options: Any) -> dict[str, Any]:
        if len(words) < 3:
            raise ValueError("expected a question and at least two choices")
        context = options.get("context")
        return {"question": words[0], "choices": list(words[1:])} | ({"context": context} if context else {})

    @classmethod
    def show(cls, request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """The choices with bars, the chosen one marked."""
        width = max(map(len, request["choices"]))
        return "\n".join(
            f"{'>' if i == answer['prediction'] else ' '} {choice:<{width}}  {'█' * round(share * BAR):<{BAR}} "
            f"{100 * share:5.1f} %"
            for i, (choice, share) in enumerate(zip(request["choices"], answer["probabilities"], strict=True))
        )

    @classmethod
    def text_of(cls, request: Mapping[str, Any]) -> str:
        choices = "; ".join(f"{i}: {choice}" for i, choice in enumerate(request["choices"]))
        return " ".join(filter(None, [request.get("context"), request["question"]])) + f" [{choices}]"


def choice_of(scores: Sequence[float | None], truncated: bool, calibration: Temperature | None = None) -> Choice | None:
    """Softmax over one question's scores; None if any is missing. Raises ArithmeticError if one is not finite."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    if not all(map(math.isfinite, known)):
        raise ArithmeticError("the model gave a score that is not a finite number")
    return Choice(softmax(known, calibration), truncated)
