"""A pipeline behind TorchServe's own worker code: batches as its Java side sends them, replies as it reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ts.service import Service

from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.torchserve import adapter
from marctl_handlers.torchserve.metrics import WorkerMetrics


@dataclass(frozen=True)
class Field:
    """A raw body, named `body`, or a form's field or file."""

    name: str
    value: bytes | bytearray | str
    content_type: str = ""


@dataclass(frozen=True)
class Answer:
    """One reply as TorchServe's Java side sees it."""

    code: int
    phrase: str
    content_type: str
    headers: dict[str, str]
    body: bytes


def batch_of(requests: Sequence[tuple[Mapping[str, str], Sequence[Field]]]) -> list[dict[str, Any]]:
    """What TorchServe's reader makes of headers and fields (ts/protocol/otf_message_handler.py)."""
    return [
        {
            "requestId": bytearray(b"server-%d" % i),
            "headers": [
                {"name": bytearray(name.encode()), "value": bytearray(value.encode())}
                for name, value in headers.items()
            ],
            "parameters": [
                {"name": field.name, "contentType": field.content_type, "value": field.value} for field in fields
            ],
        }
        for i, (headers, fields) in enumerate(requests)
    ]


class Served:
    """`send` is what happens to a batch in a worker, between its socket's two sides."""

    def __init__(self, pipeline: Pipeline, monkeypatch: Any) -> None:
        self.batches: list[Any] = []
        self.returned: list[Any] = []
        counted = WorkerMetrics("small", "1.0", pipeline)
        monkeypatch.setattr(adapter, "_served", pipeline)
        monkeypatch.setattr(adapter, "_metrics", counted)
        metrics = SimpleNamespace(request_ids=None, add_time=lambda *_: None)
        self.service = Service("small", "/", None, self._entry, None, 8, metrics_cache=metrics)
        self.service.set_cl_socket(None)

    def _entry(self, data: Any, context: Any) -> Any:
        self.returned = adapter.handle(data, context) or []
        return self.returned

    def send(self, *requests: tuple[Mapping[str, str], Sequence[Field]]) -> list[Answer]:
        return replies_in(self.service.predict(batch_of(requests)), len(requests))


def replies_in(message: bytearray, count: int) -> list[Answer]:
    """Reads what `create_predict_response` wrote, byte by byte, as the Java side does (ModelResponseDecoder)."""
    view, at = bytes(message), 0

    def integer() -> int:
        nonlocal at
        at += 4
        value: int = struct.unpack("!i", view[at - 4 : at])[0]
        return value

    def content() -> bytes:
        nonlocal at
        length = integer()
        at += length
        return view[at - length : at]

    code, said = integer(), content()
    assert code == 200, said
    answers = []
    for i in range(count):
        assert content() == b"server-%d" % i
        kind, status, phrase = content().decode("ascii"), integer(), content().decode("ascii")
        headers = {content().decode(): content().decode() for _ in range(integer())}
        answers.append(Answer(status, phrase, kind, headers, content()))
    assert integer() == -1
    assert at == len(view)
    return answers
