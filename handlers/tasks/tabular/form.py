"""Rows in plain JSON; of a bad one, every fault is told, each with its field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from marctl_handlers.core.errors import HandlerError, Invalid, NotJson
from marctl_handlers.core.forms import Decoded
from marctl_handlers.core.json_form import JsonForm
from marctl_handlers.core.messages import Request
from marctl_handlers.features import Features
from marctl_handlers.features.entity import request_faults
from marctl_handlers.tasks.tabular.schema import WHOLE

MOST_FAULTS = 20
"""Told of one row."""
MOST_NAME = 60
"""Characters of a field's name in an error."""


class RowForm(JsonForm):
    """Decodes by the question's type; only what that refuses is read again, to say all that is wrong with it."""

    def __init__(
        self, question_type: type[msgspec.Struct], example: str, max_instances: int, features: Features
    ) -> None:
        super().__init__(question_type, example, max_instances)
        self._features = features

    def decode(self, request: Request) -> Decoded:
        try:
            return super().decode(request)
        except NotJson as err:
            # NaN and Infinity, which some writers take for JSON: the row that has one is at fault, not the body.
            content = read_leniently(request.body)
            if not isinstance(content, dict):
                raise
            questions = list(self._questions(content, err))
            return Decoded(questions, several="instances" in content)

    def _questions(self, content: dict[str, Any], err: NotJson) -> Iterator[Any]:
        """Each row of a body that is no JSON but for its numbers. Raises what the body as a whole is at fault for."""
        instances = content.get("instances")
        if not isinstance(instances, list):
            fault = self._fault(content, "$")
            raise fault if fault is not None else err
        for i, row in enumerate(instances[: self._max_instances]):
            path = f"$.instances[{i}]"
            fault = self._fault(row, path)
            yield self._decode_one(json.dumps(row).encode(), path) if fault is None else fault

    def _invalid(self, err: Exception, raw: bytes | msgspec.Raw, path: str) -> HandlerError:
        return self._fault(read_leniently(bytes(raw)), path) or super()._invalid(err, raw, path)

    def _fault(self, row: Any, path: str) -> Invalid | None:
        """Everything that is wrong with a row's features; None if nothing is."""
        if not isinstance(row, dict) or not {"features", "entity"} & row.keys():
            return None
        cells, entity = row.get("features", {}), row.get("entity", {})
        if not isinstance(cells, dict) or not isinstance(entity, dict):
            return None
        if named := request_faults(self._features.specification.entities, entity):
            return faulty(named, f"{path}.entity")
        bad = dict(not_numbers(cells))
        others = self._features.faults_of({k: v for k, v in cells.items() if k not in bad}, complete=not entity)
        faults = [*bad.items(), *(fault for fault in others if fault[0] not in bad)]
        return faulty(faults, f"{path}.features") if faults else None


def faulty(faults: Sequence[tuple[str, str]], path: str) -> Invalid:
    """The error that tells the faults of the fields of an object that stands at `path`."""
    told = "; ".join(f"`{path}.{name[:MOST_NAME]}`: {text}" for name, text in faults[:MOST_FAULTS])
    more = len(faults) - MOST_FAULTS
    return Invalid(told if more <= 0 else f"{told}; and {more:,} more")


def read_leniently(body: bytes | None) -> Any:
    """JSON, or what differs from it in NaN, infinities and numbers too large; None for anything else."""
    try:
        content = json.loads(body or b"")
        json.dumps(content, ensure_ascii=False).encode()  # lone surrogates have no UTF-8 for an answer
    except (ValueError, RecursionError):
        return None
    return content


def not_numbers(cells: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in cells.items():
        if isinstance(value, float) and not math.isfinite(value):
            told = "NaN" if math.isnan(value) else "a number too large"
            yield name, f"expected a finite number, got {told}; leave out what is missing, or send null"
        elif isinstance(value, int) and abs(value) > WHOLE:
            yield name, f"expected a number that is exact, at most {WHOLE:,}, or one with an exponent, such as 1e20"
