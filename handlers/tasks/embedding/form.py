"""The bodies of /embed: plain JSON, whose `input_text` may also be a list of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marctl_handlers.core.errors import HandlerError, Invalid, TooLarge
from marctl_handlers.core.forms import Decoded, Result, encode_json
from marctl_handlers.core.json_form import JsonForm
from marctl_handlers.core.messages import Reply, Request
from marctl_handlers.tasks.embedding.schema import Answer, Answers, Asked, Question, refuse_blank


class EmbedForm(JsonForm):
    """Each text of a list is a question of its own to the model, the cache and the log.

    One that is refused or fails takes its request along: a list of vectors has no place for errors; `instances` has.
    """

    def __init__(self, example: str, max_instances: int) -> None:
        super().__init__(Asked, example, max_instances)
        self._most = max_instances

    def decode(self, request: Request) -> Decoded:
        """Raises NotJson, Invalid or TooLarge."""
        found = super().decode(request)
        if found.several:
            return Decoded([alone(asked, i) for i, asked in enumerate(found.questions)], several=True)
        [asked] = found.questions
        assert isinstance(asked, Asked)
        if isinstance(asked.input_text, str):
            return Decoded([Question(asked.input_text)])
        return Decoded(self._listed(asked.input_text), several=True, asked=Asked)

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        """Raises the first error of a list of texts."""
        if decoded.asked is not Asked:
            return super().encode(decoded, results, headers)
        return Reply(encode_json(together(results)), headers=headers)

    def _listed(self, texts: Sequence[str]) -> list[Question]:
        if not texts:
            raise Invalid("input_text is an empty list; expected at least one text - at `$.input_text`")
        if len(texts) > self._most:
            raise TooLarge(
                f"{len(texts):,} texts; at most {self._most:,} are allowed in one request - at `$.input_text`; send "
                "several requests"
            )
        for i, text in enumerate(texts):
            refuse_blank(text, f"$.input_text[{i}]")
        return [Question(text) for text in texts]


def alone(asked: Any, place: int) -> Question | HandlerError:
    """An instance's one text."""
    if isinstance(asked, HandlerError):
        return asked
    if isinstance(asked.input_text, str):
        return Question(asked.input_text)
    path = f"$.instances[{place}].input_text"
    return Invalid(f"expected one text, got a list; send each text as an instance of its own - at `{path}`")


def together(results: Sequence[Result]) -> Answers:
    """One answer made of several. Raises the first error among them."""
    answers: list[Answer] = []
    for result in results:
        if isinstance(result, HandlerError):
            raise result
        assert isinstance(result, Answer)
        answers.append(result)
    first = answers[0]
    return Answers(
        prediction_id=first.prediction_id.rpartition(":")[0],
        model=first.model,
        model_version=first.model_version,
        embeddings=[answer.embedding for answer in answers],
        tokens=[answer.tokens for answer in answers],
        truncated=[answer.truncated for answer in answers],
        latency_ms=first.latency_ms,
    )
