"""Rows that leave features to a store get them, once for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from marctl_handlers.core.errors import HandlerError, Invalid
from marctl_handlers.core.task import FeatureStore
from marctl_handlers.tasks.tabular.schema import Question

Asked = TypeVar("Asked", bound=Question)
NO_STORE = "stored features are not at hand here; send all features - at `$.entity`"


def completed(questions: Sequence[Asked], store: FeatureStore | None) -> list[Asked | HandlerError]:
    """The questions with what a store has of the entities that they name."""
    asking = [i for i, question in enumerate(questions) if question.entity]
    found: list[Asked | HandlerError] = list(questions)
    if asking and store is None:
        return [Invalid(NO_STORE) if question.entity else question for question in questions]
    if asking and store is not None:
        rows = store.complete([(questions[i].features, questions[i].entity) for i in asking])
        for i, row in zip(asking, rows, strict=True):
            found[i] = row if isinstance(row, HandlerError) else msgspec.structs.replace(questions[i], features=row)
    return found
