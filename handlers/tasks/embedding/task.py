"""Texts to vectors, by any encoder that sentence-transformers can pool: mean, first token or maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from marctl_handlers.core.columns import Column, LogColumn
from marctl_handlers.core.forms import Form
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.tasks.embedding.form import EmbedForm
from marctl_handlers.tasks.embedding.schema import (
    Answer,
    Answers,
    Asked,
    EmbeddingSettings,
    Question,
    Vector,
    refuse_blank,
)
from marctl_handlers.tasks.embedding.vectors import distance

if TYPE_CHECKING:
    from marctl_handlers.core.portable import Portable
    from marctl_handlers.text.runtime import Runtime
    from marctl_handlers.text.tokenization import Row, TextEncoder

DECIMALS = 7
"""As many as float32 has for numbers below 1; more would double an answer's size."""
FLOAT = np.dtype("<f4")
SKETCH_BITS = 64
MOST_TOKENS = 512
"""Suggested for a model that names no limit; twice what the longest text has in most languages."""
SHOWN = 6
"""Values of a vector that a terminal shows."""


class Embedding(Task[Question, Vector]):
    """Answers each text with a vector."""

    settings: EmbeddingSettings
    settings_type: ClassVar[type[Settings]] = EmbeddingSettings
    answer_type: ClassVar[type[msgspec.Struct]] = Answer
    bodies: ClassVar[tuple[type, ...]] = (Asked,)
    replies: ClassVar[tuple[type, ...]] = (Answer, Answers)
    example: ClassVar[str] = '{"input_text": "..."} or {"input_text": ["...", "..."]}'
    cost_unit: ClassVar[str] = "tokens"
    default_sample: ClassVar[Mapping[str, Any] | None] = {"input_text": "People use a knife to cut bread."}
    hub_class: ClassVar[str | None] = "AutoModel"
    files: ClassVar[tuple[str, ...]] = (
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "*/config.json",
    )
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    inputs: ClassVar[tuple[Column, ...]] = (Column("input_text", "BYTES"),)
    outputs = (
        Column("embedding", "FP32", wide=True),
        Column("tokens", "INT64"),
        Column("truncated", "BOOL"),
    )
    log_columns: ClassVar[tuple[LogColumn, ...]] = (
        LogColumn("sketch", "str"),
        LogColumn("tokens", "int"),
        LogColumn("truncated", "bool"),
    )
    encoder: TextEncoder
    model: Runtime
    width: int
    """Values of a vector."""

    def load(self, folder: Path) -> None:
        """From a `save_pretrained` folder, with the files that sentence-transformers puts beside the model."""
        from marctl_handlers.tasks.embedding.modules import read_pooling
        from marctl_handlers.text.choose import load_runtime
        from marctl_handlers.text.saved_tokenizer import open_tokenizer
        from marctl_handlers.text.tokenization import TextEncoder

        pooling = read_pooling(folder, self.settings)
        self.encoder = TextEncoder(open_tokenizer(folder), self.settings.max_tokens)
        samples = self._sample_rows(folder) if self.settings.precision == "int8" else []
        assert self.hub_class is not None
        self.model = load_runtime(
            folder, self.hub_class, self.encoder, self.settings, self.device, samples, pooling=pooling
        )
        [vector] = self.model.run(self.encoder.encode(["?"]), float("inf"))
        self.width = len(vector)
        self.outputs = (Column("embedding", "FP32", wide=True, width=self.width), *self.outputs[1:])

    def _sample_rows(self, folder: Path) -> list[Row]:
        from marctl_handlers.core.samples import read_samples

        asked = [msgspec.convert(sample.request, Question) for sample in read_samples(folder.parent)]
        return self.encoder.encode([question.input_text for question in asked])

    def form(self) -> Form:
        return EmbedForm(self.example, self.settings.max_instances)

    def check(self, question: Question) -> None:
        refuse_blank(question.input_text, "$.input_text")

    def cost(self, questions: Sequence[Question]) -> int:
        """Tokens of all rows; only what may be large is tokenized to be counted."""
        at_most = len(questions) * self.settings.max_tokens
        if at_most <= self.settings.small_cost:
            return at_most
        return self.encoder.count([question.input_text for question in questions])

    def predict(self, questions: Sequence[Question], deadline: float) -> list[Vector | None]:
        """All texts through the model together."""
        rows = self.encoder.encode([question.input_text for question in questions])
        found = self.model.run(rows, deadline)
        return [None if vector is None else vector_of(vector, row) for vector, row in zip(found, rows, strict=True)]

    def answer(self, question: Question, outcome: Vector, stamp: Stamp) -> Answer:
        return Answer(
            prediction_id=stamp.prediction_id,
            model=self.settings.model_name or stamp.model,
            model_version=stamp.version,
            embedding=np.frombuffer(outcome.data, FLOAT).astype(np.float64).round(DECIMALS).tolist(),
            tokens=outcome.tokens,
            truncated=outcome.truncated,
            latency_ms=stamp.latency_ms,
        )

    def log_values(self, question: Question, outcome: Vector) -> Mapping[str, Any]:
        """`sketch`: the signs of the first 64 values, in hex. It says whether two versions see a text alike, roughly,
        and whether texts drift, in 16 characters instead of hundreds of numbers."""
        signs = np.frombuffer(outcome.data, FLOAT)[:SKETCH_BITS] > 0
        return {"sketch": np.packbits(signs).tobytes().hex(), "tokens": outcome.tokens, "truncated": outcome.truncated}

    def fits(self, question: Question, outcome: Vector) -> bool:
        return len(outcome.data) == self.width * FLOAT.itemsize

    @property
    def runtime(self) -> str:
        return self.model.runtime

    def warm_up(self) -> None:
        self.model.warm_up()

    @classmethod
    def suggest(cls, folder: Path) -> dict[str, Any]:
        from marctl_handlers.tasks.embedding.modules import longest
        from marctl_handlers.text.hub import token_limit

        return {"max_tokens": longest(folder) or token_limit(folder, MOST_TOKENS)}

    @classmethod
    def reference(cls, folder: Path, requests: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
        from marctl_handlers.tasks.embedding.modules import read_pooling
        from marctl_handlers.tasks.embedding.reference import plain_answers

        assert isinstance(settings, EmbeddingSettings)
        return plain_answers(folder, requests, read_pooling(folder, settings), settings.max_tokens)

    @classmethod
    def portable(cls, folder: Path, settings: Settings) -> Portable:
        from marctl_handlers.tasks.embedding.portable import portable

        assert isinstance(settings, EmbeddingSettings)
        assert cls.hub_class is not None
        return portable(folder, cls.hub_class, settings)

    @classmethod
    def expected_faults(cls, request: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
        faults, vector = super().expected_faults(request, expected), expected.get("embedding")
        if not isinstance(vector, list) or not vector or not all(isinstance(value, float | int) for value in vector):
            faults.append(f".embedding: expected a list of numbers, at least the vector's first ones, got {vector!r}")
        return faults

    @classmethod
    def differences(cls, expected: Mapping[str, Any], answer: Mapping[str, Any], tolerance: float) -> list[str]:
        """A vector may be `tolerance` of its length away from the expected one, of which a sample may hold the first
        values alone."""
        wanted, given = expected["embedding"], answer.get("embedding") or []
        first = given[: len(wanted)]
        found = []
        if len(first) < len(wanted):
            found.append(f"embedding has {len(given)} values, expected {len(wanted)} or more")
        elif not distance(wanted, first) <= tolerance:
            found.append(
                f"embedding is {shown(given)}, expected {shown(wanted)}: {distance(wanted, first):.3f} of its length "
                f"away, at most {tolerance:g} is allowed"
            )
        rest = {name: value for name, value in expected.items() if name != "embedding"}
        return found + super().differences(rest, answer, tolerance)

    @classmethod
    def request_from_words(cls, words: Sequence[str], **options: Any) -> dict[str, Any]:
        """One text, or several, each a word of the command line; or the request as JSON."""
        if len(words) == 1 and words[0].lstrip().startswith("{"):
            return super().request_from_words(words, **options)
        return {"input_text": words[0] if len(words) == 1 else list(words)}

    @classmethod
    def show(cls, request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """The first values of each vector."""
        texts = request["input_text"]
        vectors = answer.get("embeddings") or [answer["embedding"]]
        return "\n".join(
            f"{text}\n  {shown(vector)}, {len(vector)} values"
            for text, vector in zip([texts] if isinstance(texts, str) else texts, vectors, strict=True)
        )

    @classmethod
    def text_of(cls, request: Mapping[str, Any]) -> str:
        return str(request["input_text"])


def vector_of(values: Sequence[float], row: Row) -> Vector:
    """Raises ArithmeticError if a value is not finite."""
    found = np.asarray(values, FLOAT)
    if not np.isfinite(found).all():
        raise ArithmeticError("the model gave a value that is not a finite number")
    return Vector(found.tobytes(), len(row.ids), row.truncated)


def shown(vector: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in vector[:SHOWN]) + (", ...]" if len(vector) > SHOWN else "]")
