"""Raw bodies, such as images: the whole body is the question, and the answer is JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from marctl_handlers.core.errors import Invalid, NotJson, UnsupportedType
from marctl_handlers.core.forms import Decoded, Form, Result, in_json
from marctl_handlers.core.json_form import DECODING, plain, refuse_many, schema_error
from marctl_handlers.core.messages import JSON, Binary, Reply, Request

UNNAMED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of clients that name none: curl sends the last one unasked."""
EXAMPLE = '{"instances": [{"b64": "..."}]}'


class Encoded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A raw body inside JSON, as TensorFlow Serving and KServe write it."""

    b64: bytes
    content_type: str = ""


class Instances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instances: list[Encoded]


class RawForm(Form):
    """For tasks of Binary questions."""

    def __init__(self, content_types: Sequence[str], max_instances: int) -> None:
        self._accepted = tuple(content_types)
        self._max_instances = max_instances
        self._decoder = msgspec.json.Decoder(Instances)

    def decode(self, request: Request) -> Decoded:
        """Raises NotJson, Invalid, TooLarge or UnsupportedType."""
        kind = request.content_type.partition(";")[0].strip().lower()
        if not request.body:
            raise Invalid(f"the body is empty; send the data itself, with a Content-Type of {self._named}")
        if kind == JSON and not self._takes(JSON):
            return self._decode_json(request.body)
        if kind not in UNNAMED and not self._takes(kind):
            raise UnsupportedType(f"Content-Type is {kind!r}; this model reads {self._named}, or JSON like {EXAMPLE}")
        return Decoded([Binary(request.body, "" if kind in UNNAMED else kind)])

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        return in_json(decoded, results, headers)

    def _decode_json(self, body: bytes) -> Decoded:
        try:
            given = self._decoder.decode(body).instances
        except msgspec.ValidationError as err:
            raise schema_error(err, lambda: msgspec.json.decode(body), "$", EXAMPLE) from err
        except DECODING as err:
            raise NotJson(f"the body is not JSON: {plain(err)}; expected {EXAMPLE}") from err
        refuse_many(len(given), self._max_instances)
        return Decoded([Binary(one.b64, one.content_type) for one in given], several=True)

    def _takes(self, kind: str) -> bool:
        return any(fnmatchcase(kind, accepted) for accepted in self._accepted)

    @property
    def _named(self) -> str:
        return " or ".join(self._accepted)
