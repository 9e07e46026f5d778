"""A task of your own: what clients ask, what they are answered, and how. Put your model where the greeting is."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from marctl_handlers import Task


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """A request. One that does not look so is refused with 422, and never reaches `predict`."""

    name: str


class Answer(msgspec.Struct):
    greeting: str


class HelloTask(Task[Question, Answer]):
    # The distributions that the model needs, such as ("torch", "transformers").
    libraries = ()

    def load(self, folder: Path) -> None:
        """Once in each worker. `folder` holds the files that the recipe's `weights` names."""

    def predict(self, questions: Sequence[Question], deadline: float) -> list[Answer]:
        """One answer per question, in their order; the questions are a batch from several clients."""
        return [Answer(f"Hello, {question.name}!") for question in questions]
