"""Plain JSON: a bare question, `{"instances": [...]}` or `{"features": ...}`, and answers to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from marctl_handlers.core.errors import HandlerError, Invalid, NotJson, TooLarge
from marctl_handlers.core.forms import Decoded, Form, Result, in_json
from marctl_handlers.core.messages import Reply, Request

DECODING = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What bytes that are no JSON, or no such JSON, make a decoder raise."""
BOUND = re.compile(r"^Expected `(array|str)` of length (<=|>=) (\d+)$")


class Envelope(msgspec.Struct, frozen=True):
    """The forms that a body may take besides the bare question."""

    instances: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    features: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET


class JsonForm(Form):
    """For questions of one type."""

    def __init__(self, question_type: type[msgspec.Struct], example: str, max_instances: int) -> None:
        self._bare: msgspec.json.Decoder[Any] = msgspec.json.Decoder(question_type)
        self._envelope = msgspec.json.Decoder(Envelope)
        self._object = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._example = example
        self._max_instances = max_instances
        self._has_features = any(f.encode_name == "features" for f in msgspec.structs.fields(question_type))
        """Then `features` is the question's own field, and not one round a question."""

    def decode(self, request: Request) -> Decoded:
        """Raises NotJson, Invalid or TooLarge."""
        if request.body is None:
            raise NotJson(
                f"expected a JSON body, got a form or none; send `Content-Type: application/json` and {self._example}"
            )
        if not request.body:
            raise NotJson(f"the body is empty; expected {self._example}")
        try:
            return Decoded([self._bare.decode(request.body)])
        except DECODING as err:
            return self._decode_envelope(request.body, err)

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        return in_json(decoded, results, headers)

    def _decode_envelope(self, body: bytes, bare_error: Exception) -> Decoded:
        """The bare question is by far the most common form; only what is not one pays for a second look."""
        try:
            envelope = self._envelope.decode(body)
        except msgspec.ValidationError:
            raise self._invalid(bare_error, body, "$") from bare_error
        except DECODING as err:
            raise NotJson(f"the body is not JSON: {plain(err)}; expected {self._example}") from err
        if envelope.instances is not msgspec.UNSET:
            return self._decode_instances(envelope.instances)
        if envelope.features is not msgspec.UNSET and not self._has_features:
            question = self._decode_one(envelope.features, "$.features")
        elif envelope.model is not msgspec.UNSET:
            question = self._decode_one(self._without_model(body), "$")
        else:
            raise self._invalid(bare_error, body, "$") from bare_error
        if isinstance(question, HandlerError):
            raise question
        return Decoded([question])

    def _without_model(self, body: bytes) -> bytes:
        """The gateway has read `model`; beside a bare question it is no field of the question's."""
        try:
            fields = self._object.decode(body)
        except DECODING as err:
            raise NotJson(f"the body is not JSON: {plain(err)}; expected {self._example}") from err
        return msgspec.json.encode({name: value for name, value in fields.items() if name != "model"})

    def _decode_instances(self, instances: list[msgspec.Raw]) -> Decoded:
        refuse_many(len(instances), self._max_instances)
        return Decoded([self._decode_one(raw, f"$.instances[{i}]") for i, raw in enumerate(instances)], several=True)

    def _decode_one(self, raw: bytes | msgspec.Raw, path: str) -> Any:
        try:
            return self._bare.decode(raw)
        except DECODING as err:
            return self._invalid(err, raw, path)

    def _invalid(self, err: Exception, raw: bytes | msgspec.Raw, path: str) -> HandlerError:
        if not isinstance(err, msgspec.ValidationError):
            return NotJson(f"not JSON: {plain(err)} - at `{path}`; expected {self._example}")
        return schema_error(err, lambda: msgspec.json.decode(raw), path, self._example)


def refuse_many(count: int, most: int) -> None:
    """Raise Invalid for a request of no instances, TooLarge for one of too many."""
    if not count:
        raise Invalid("expected at least one instance, got none - at `$.instances`")
    if count > most:
        raise TooLarge(
            f"{count:,} instances; at most {most:,} are allowed in one request - at `$.instances`; "
            "send several requests"
        )


def schema_error(
    err: msgspec.ValidationError, decoded: Callable[[], Any], path: str, example: str = ""
) -> HandlerError:
    """The error to answer for a value that breaks the schema: too many elements are 413, the rest 422.

    `decoded` gives the value without a schema; `path` is its own place in the request.
    """
    said, _, place = str(err).partition(" - at ")
    inner = place.strip("`").removeprefix("$")
    where = f" - at `{path}{inner}`"
    expected = f"; expected {example}" if example else ""
    bound = BOUND.fullmatch(said)
    if bound is None or "[...]" in inner:
        return Invalid(f"{said}{where}{expected}")
    kind, comparison, number = bound[1], bound[2], int(bound[3])
    try:
        found, name = value_at(decoded(), inner), name_of(inner or path)
        count = len(found)
    except DECODING as broken:
        return NotJson(f"not JSON: {plain(broken)}{where}{expected}")
    except (LookupError, TypeError):  # a key that stands twice: another one's value is at that place
        return Invalid(f"{said}{where}{expected}")
    if kind == "array" and comparison == "<=":
        return TooLarge(f"{count:,} {name}; at most {number:,} are allowed{where}")
    if kind == "array":
        return Invalid(f"{counted(count, name)}; at least {number:,} are needed{where}{expected}")
    if comparison == ">=":
        return Invalid(f"{name} is {'too short' if count else 'empty'}{where}{expected}")
    return Invalid(f"{name} has {count:,} characters; at most {number:,} are allowed{where}")


def value_at(value: Any, path: str) -> Any:
    """The part of a decoded JSON value at a path such as `.choices[1]`."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    return value


def name_of(path: str) -> str:
    """`choice 2` for `.choices[1]`, `question` for `.question`."""
    element = re.search(r"(?:^|\.)([^.\[\]]+)\[(\d+)\]$", path)
    if element:
        return f"{singular(element[1])} {int(element[2]) + 1}"
    return path.rpartition(".")[2] or path


def counted(number: int, plural: str) -> str:
    """`30 choices`, `1 choice`."""
    return f"{number:,} {singular(plural) if number == 1 else plural}"


def singular(noun: str) -> str:
    """Field names are plain English plurals: `choices`, `texts`, `queries`."""
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun.removesuffix("s")


def plain(err: Exception) -> str:
    """A decoding error in a few words; none of the client's bytes are in it."""
    if isinstance(err, RecursionError):
        return "nested too deeply"
    if isinstance(err, UnicodeDecodeError):
        return f"not UTF-8 at byte {err.start}"
    return re.sub(r"^JSON is malformed: ", "", str(err))
