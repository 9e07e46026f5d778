"""Translates Open Inference Protocol requests (HTTP and gRPC) and TorchServe's gRPC messages to plain ones and back.

The gateway names the form of a request in a header (scripts/gateway/open_inference.py). Here the request becomes the
JSON that clients of `/predictions` send, goes the same way through the task, and its answer is put into the form again.

    open             JSON, which raw tensors may follow: the protocol's REST form and its binary tensor extension
    open-grpc        the message ModelInferRequest as JSON, as protobuf writes it; so is the answer
    open-metadata    no body; the answer tells the task's inputs and outputs
    torchserve-grpc  the message PredictionsRequest as JSON; its input `data` or `body` holds a request

Source: https://github.com/kserve/open-inference-protocol; the extension is Triton's, extension_binary_data.md.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from handlers.core.errors import HandlerError, Invalid, NotJson, NotSupported
from handlers.core.task import Reply, Request, Task, plain
from handlers.protocols.tensors import Column, Tensor, check, flat, of_column, pack, text_of, unpack

PROTOCOL_HEADER = "x-inference-protocol"
JSON_LENGTH_HEADER = "inference-header-content-length"
BINARY = "application/octet-stream"
PLATFORM = "torchserve"
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Data type to the field of InferTensorContents that holds its values."""


class InputTensor(Struct, frozen=True):
    """`data` are its values, flat or nested as the shape is; without any they come apart, as raw bytes."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | UnsetType = UNSET


class RequestedOutput(Struct, frozen=True):
    """An output that the client asks for; without any, it gets all."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(Struct, frozen=True):
    """One inference request."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class OutputTensor(Struct, frozen=True, omit_defaults=True):
    """One output of an answer; `binary_data_size` in `parameters` if its values come apart, as raw bytes."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[Any] | UnsetType = UNSET


class InferResponse(Struct, frozen=True, omit_defaults=True):
    """The answer to an inference request; `id` is the request's, if it had one."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str = ""


class Contents(Struct, frozen=True):
    """gRPC's InferTensorContents."""

    bool_contents: list[bool] = []
    int_contents: list[int] = []
    int64_contents: list[int] = []
    uint_contents: list[int] = []
    uint64_contents: list[int] = []
    fp32_contents: list[float] = []
    fp64_contents: list[float] = []
    bytes_contents: list[bytes] = []


class InputMessage(Struct, frozen=True):
    """gRPC's InferInputTensor."""

    name: str
    datatype: str
    shape: list[int]
    contents: Contents | UnsetType = UNSET


class InferMessage(Struct, frozen=True):
    """gRPC's ModelInferRequest."""

    inputs: list[InputMessage]
    id: str = ""
    outputs: list[RequestedOutput] = []
    raw_input_contents: list[bytes] = []


class OutputMessage(Struct, frozen=True, omit_defaults=True):
    """gRPC's InferOutputTensor."""

    name: str
    datatype: str
    shape: list[int]
    contents: dict[str, list[Any]] | UnsetType = UNSET


class ResponseMessage(Struct, frozen=True, omit_defaults=True):
    """gRPC's ModelInferResponse."""

    model_name: str
    model_version: str
    outputs: list[OutputMessage]
    id: str = ""
    raw_output_contents: list[bytes] = []


class TensorMetadata(Struct, frozen=True):
    """-1 in a shape stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True):
    """What a version takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class PredictionsRequest(Struct, frozen=True):
    """TorchServe's gRPC message."""

    input: dict[str, bytes] = {}


from_json = msgspec.json.Decoder(InferRequest)
# Protobuf writes 64-bit integers as strings.
from_message = msgspec.json.Decoder(InferMessage, strict=False)
from_torchserve = msgspec.json.Decoder(PredictionsRequest)
to_json = msgspec.json.Encoder()

AnyTask = Task[Any, Any]
Close = Callable[[Reply], Reply]
"""Puts a plain answer into the form that its request came in."""


def answer(task: AnyTask, requests: Sequence[Request]) -> list[Reply]:
    """One reply per request, in order, each in the form that its request came in. Never raises for what was sent."""
    forms = [request.header(PROTOCOL_HEADER) for request in requests]
    if not any(forms):
        return task.answer(requests)
    opened = [open_form(task, form, request) for form, request in zip(forms, requests, strict=True)]
    asked = [entry for entry in opened if not isinstance(entry, Reply)]
    replies = iter(task.answer([request for request, _ in asked]))
    return [entry if isinstance(entry, Reply) else entry[1](next(replies)) for entry in opened]


def open_form(task: AnyTask, form: str | None, request: Request) -> tuple[Request, Close] | Reply:
    """The plain request and the way back, or the answer if there is nothing to compute."""
    headers = {"x-model-version": task.version}
    try:
        if not form:
            return request, lambda reply: reply
        if form == "open-metadata":
            return Reply(to_json.encode(metadata(task)), headers=headers)
        if form == "torchserve-grpc":
            return replace(request, body=torchserve_body(request.body)), in_message
        return open_inference(task, request, grpc=form == "open-grpc")
    except HandlerError as err:
        return refusal(Reply(b"", err.code, err.phrase, headers), err.error, str(err), grpc=form != "open")


def metadata(task: AnyTask) -> ModelMetadata:
    def described(columns: Sequence[Column]) -> list[TensorMetadata]:
        return [TensorMetadata(column.name, column.datatype, column.shape) for column in columns]

    return ModelMetadata(task.name, [task.version], PLATFORM, described(task.inputs), described(task.outputs))


def torchserve_body(message: bytes | None) -> bytes | None:
    """The request that a message carries; None if it carries none."""
    given: dict[str, bytes] = decode(from_torchserve, message).input
    return given.get("body", given.get("data"))


def in_message(reply: Reply) -> Reply:
    if reply.code == 200:
        return replace(reply, body=to_json.encode({"prediction": reply.body}))
    told = msgspec.json.decode(reply.body)
    return refusal(reply, told["error"], told["detail"], grpc=True)


def open_inference(task: AnyTask, request: Request, *, grpc: bool) -> tuple[Request, Close]:
    """The same question, or several as instances. Raises HandlerError."""
    if not task.inputs:
        raise NotSupported(f"model {task.name} {task.version} has no tensors; use /predictions")
    asked, given = from_grpc(request) if grpc else from_http(request)
    wanted = requested(task, asked.outputs)
    rows = instances(task.inputs, given)
    one = len(rows) == 1

    def close(reply: Reply) -> Reply:
        told = msgspec.json.decode(reply.body)
        if reply.code != 200:
            return refusal(reply, told["error"], in_tensor_terms(told["detail"]), grpc=grpc)
        answers = [told] if one else told["predictions"]
        failed = next((row for row in answers if "error" in row), None)
        if failed:
            detail = in_tensor_terms(failed["detail"])
            return refusal(with_code(reply, failed["error"]), failed["error"], detail, grpc=grpc)
        outputs = [of_column(column, [row[column.name] for row in answers]) for column in wanted]
        # Not always this worker's: the last known answer may be another version's.
        source = answers[0]["model"], answers[0]["model_version"]
        if isinstance(asked, InferMessage):
            return in_protobuf(source, reply, outputs, asked)
        return in_json(source, reply, outputs, asked)

    return replace(request, body=to_json.encode(rows[0] if one else {"instances": rows})), close


def decode(decoder: msgspec.json.Decoder[Any], body: bytes | None) -> Any:
    try:
        return decoder.decode(body or b"")
    except msgspec.ValidationError as err:
        raise Invalid(str(err)) from err
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise NotJson(f"the request is not JSON: {plain(err)}") from err


def from_grpc(request: Request) -> tuple[InferMessage, list[Tensor]]:
    asked = decode(from_message, request.body)
    return asked, message_tensors(asked)


def from_http(request: Request) -> tuple[InferRequest, list[Tensor]]:
    """A header says where the JSON ends and the raw tensors begin. Raises NotJson or Invalid."""
    body, length = request.body or b"", request.header(JSON_LENGTH_HEADER)
    end = len(body)
    if length is not None:
        if not re.fullmatch(r"[0-9]{1,10}", length) or int(length) > end:
            raise Invalid(f"{JSON_LENGTH_HEADER} is no number up to {end}, the length of the body")
        end = int(length)
    asked = decode(from_json, body[:end])
    return asked, tensors(asked, body[end:])


def requested(task: AnyTask, outputs: Sequence[RequestedOutput]) -> list[Column]:
    """The outputs to give, in the order asked for."""
    there = {column.name: column for column in task.outputs}
    for output in outputs:
        if output.name not in there:
            raise Invalid(f"no output {output.name}; there are: {', '.join(there)}")
        if "classification" in output.parameters:
            raise Invalid(f"output {output.name}: classification is not supported; take the output as it is")
    return [there[output.name] for output in outputs] or list(there.values())


def tensors(asked: InferRequest, raw: bytes) -> list[Tensor]:
    """The inputs, checked against their shapes; `raw` follows the JSON."""
    found = []
    for given in asked.inputs:
        size = given.parameters.get("binary_data_size")
        if size is not None:
            if not isinstance(size, int) or not 0 <= size <= len(raw):
                raise Invalid(
                    f"input {given.name}: binary_data_size is {size}, {len(raw)} bytes are left after the JSON"
                )
            values, raw = unpack(given.name, given.datatype, raw[:size]), raw[size:]
        elif given.data is UNSET:
            raise Invalid(f"input {given.name} has no data")
        else:
            values = flat_values(given.name, given.data)
        found.append(check(Tensor(given.name, given.datatype, given.shape, values)))
    if raw:
        raise Invalid(f"{len(raw)} bytes are left after the last input")
    return found


def flat_values(name: str, data: list[Any]) -> list[Any]:
    try:
        return list(flat(data))
    except RecursionError as err:
        raise Invalid(f"input {name} is nested too deeply") from err


def message_tensors(asked: InferMessage) -> list[Tensor]:
    """The same for gRPC, where the values stand in fields by type, or apart as raw bytes."""
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise Invalid(f"raw_input_contents has {len(raw)} entries, expected one for each of {len(asked.inputs)} inputs")
    found = []
    for i, given in enumerate(asked.inputs):
        values = unpack(given.name, given.datatype, raw[i]) if raw else contents_of_message(given)
        found.append(check(Tensor(given.name, given.datatype, given.shape, values)))
    return found


def contents_of_message(given: InputMessage) -> list[Any]:
    field = CONTENTS.get(given.datatype)
    if field is None:
        raise Invalid(f"input {given.name} is of type {given.datatype}; expected one of {', '.join(CONTENTS)}")
    if given.contents is UNSET:
        raise Invalid(f"input {given.name} has no data")
    values = list(getattr(given.contents, field))
    return [text_of(given.name, value) for value in values] if given.datatype == "BYTES" else values


def instances(columns: Sequence[Column], given: Sequence[Tensor]) -> list[dict[str, Any]]:
    """A question per row. Raises Invalid if an input is missing, unknown, of the wrong type or of another length."""
    expected = ", ".join(f"{c.name} {c.datatype}{' (optional)' if c.optional else ''}" for c in columns)
    by_name = {tensor.name: tensor for tensor in given}
    known = {column.name: column for column in columns}
    for tensor in given:
        if tensor.name not in known:
            raise Invalid(f"no input {tensor.name}; there are: {expected}")
        if tensor.datatype != known[tensor.name].datatype:
            raise Invalid(f"input {tensor.name} is of type {tensor.datatype}; there are: {expected}")
    missing = [c.name for c in columns if not c.optional and c.name not in by_name]
    if missing:
        raise Invalid(f"input {missing[0]} is missing; there are: {expected}")
    rows = {column: by_name[column.name].rows(column.wide) for column in columns if column.name in by_name}
    counts = {column.name: len(values) for column, values in rows.items()}
    if len(set(counts.values())) > 1:
        raise Invalid(f"the inputs have different numbers of rows: {counts}")
    return [question(rows, i) for i in range(next(iter(counts.values())))]


def question(rows: Mapping[Column, Sequence[Any]], i: int) -> dict[str, Any]:
    return {c.name: values[i] for c, values in rows.items() if not (c.optional and values[i] in ("", []))}


def in_json(source: tuple[str, str], reply: Reply, outputs: Sequence[Tensor], asked: InferRequest) -> Reply:
    """Raw bytes after the JSON for the outputs that were asked for in that way. `source`: model and version."""
    by_default = asked.parameters.get("binary_data_output") is True
    wishes = {output.name: output.parameters.get("binary_data", by_default) for output in asked.outputs}
    entries, after = [], b""
    for tensor in outputs:
        name, datatype, shape = tensor.name, tensor.datatype, tensor.shape
        if wishes.get(name, by_default):
            raw = pack(tensor)
            after += raw
            entries.append(OutputTensor(name, datatype, shape, {"binary_data_size": len(raw)}))
        else:
            entries.append(OutputTensor(name, datatype, shape, data=tensor.values))
    body = to_json.encode(InferResponse(*source, entries, asked.id))
    if not any(entry.parameters for entry in entries):
        return replace(reply, body=body)
    headers = reply.headers | {JSON_LENGTH_HEADER: str(len(body))}
    return replace(reply, body=body + after, headers=headers, content_type=BINARY)


def in_protobuf(source: tuple[str, str], reply: Reply, outputs: Sequence[Tensor], asked: InferMessage) -> Reply:
    """Raw if the inputs were raw, else in the fields of each type."""
    raw = bool(asked.raw_input_contents)
    entries = [OutputMessage(t.name, t.datatype, t.shape, UNSET if raw else contents_of(t)) for t in outputs]
    apart = [pack(tensor) for tensor in outputs] if raw else []
    return replace(reply, body=to_json.encode(ResponseMessage(*source, entries, asked.id, apart)))


def contents_of(tensor: Tensor) -> dict[str, list[Any]]:
    values = tensor.values
    if tensor.datatype == "BYTES":
        values = [b64encode(value.encode("utf-8", "surrogatepass")).decode() for value in values]
    return {CONTENTS[tensor.datatype]: values}


def refusal(reply: Reply, error: str, detail: str, *, grpc: bool) -> Reply:
    """One text: the protocol knows no more, and its clients show no more."""
    said = f"{error}: {detail}"
    return replace(reply, body=said.encode() if grpc else to_json.encode({"error": said}))


def in_tensor_terms(detail: str) -> str:
    """`$.instances[3].choices[1]` is the input choices at [3, 1]; an example of a plain request is no help here."""
    detail = re.sub(r"; expected \{.*$", "", detail)
    detail = re.sub(r"`\$\.(?!instances\b)", "`$.instances[0].", detail)
    detail = re.sub(r"`\$\.instances\[(\d+)\]\.(\w+)\[(\d+)\]`", r"`\2[\1, \3]`", detail)
    detail = re.sub(r"`\$\.instances\[(\d+)\]\.(\w+)`", r"`\2[\1]`", detail)
    return re.sub(r"`\$\.instances\[(\d+)\]`", r"row \1", detail)


def with_code(reply: Reply, error: str) -> Reply:
    """The reply with the code of an error's short name."""
    known = {kind.error: kind for kind in HandlerError.__subclasses__()}
    err = known[error]("")
    return replace(reply, code=err.code, phrase=err.phrase)
