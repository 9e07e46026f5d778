"""What a worker's answers were, in numbers: how often each class, how sure, how often from incomplete input.

Labels are few whatever clients ask: places of choices up to a limit, the classes that a task names, kinds of errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from marctl_handlers.core.messages import FAILED_HEADER
from marctl_handlers.core.pipeline import Exchange, Item
from marctl_handlers.core.task import Task

MOST_CLASSES = 32
OTHER = "other"
Classify = Callable[[Mapping[str, Any]], str]


class Tally:
    """Of some exchanges."""

    def __init__(self) -> None:
        self.errors = Counter[str]()
        """By the error's short name; of each question, and of each request that held none."""
        self.classes = Counter[str]()
        self.marks = Counter[str]()
        """Sums of the task's counted fields."""
        self.confidences: list[float] = []
        self.fallbacks = 0
        """Requests that another version had failed."""

    def add(self, exchanges: Sequence[Exchange], task: Task[Any, Any], classify: Classify | None) -> None:
        for exchange in exchanges:
            self.fallbacks += FAILED_HEADER in exchange.request.headers
            if exchange.error is not None:
                self.errors[type(exchange.error).error] += max(len(exchange.items), 1)
                continue
            for item in exchange.items:
                if item.error is not None:
                    self.errors[type(item.error).error] += 1
                elif item.kept is not None:
                    self._add_answer(item, item.kept, task, classify)

    def _add_answer(self, item: Item, kept: Mapping[str, Any], task: Task[Any, Any], classify: Classify | None) -> None:
        for name in task.counted_fields:
            if value := getattr(item.outcome, name, 0):
                self.marks[name] += amount(value)
        confidence = kept.get(task.confidence_column)
        if type(confidence) is float:
            self.confidences.append(confidence)
        if classify is not None:
            self.classes[classify(kept)] += 1


def amount(value: Any) -> int:
    """1 for a mark, a number as it is, the length of a list of what is marked."""
    return len(value) if isinstance(value, Sized) else int(value)


def classifier(task: Task[Any, Any]) -> Classify | None:
    """Gives the class of an answer by its log columns, of which the first is the prediction; None if it has none."""
    if not task.log_columns:
        return None
    name, kind = task.log_columns[0].name, task.log_columns[0].type
    if kind == "int":
        return lambda kept: place(kept.get(name))
    if kind == "bool":
        return lambda kept: str(bool(kept.get(name))).lower()
    if kind == "str" and task.classes:
        known = frozenset(task.classes[:MOST_CLASSES])
        return lambda kept: value if (value := kept.get(name)) in known else OTHER
    return None


def place(value: Any) -> str:
    return str(value) if isinstance(value, int) and 0 <= value < MOST_CLASSES else OTHER
