"""Translates Open Inference Protocol requests (HTTP and gRPC) and TorchServe's gRPC messages to plain ones and back.

The gateway names the form of a request in a header (scripts/gateway/open_inference.py). Tensors become the questions
that clients of `/predictions` send as JSON, and the answers become tensors again.

    open             JSON, which raw tensors may follow: the protocol's REST form and its binary tensor extension
    open-grpc        the message ModelInferRequest as JSON, as protobuf writes it; so is the answer
    open-metadata    no body; the answer tells the task's inputs and outputs
    torchserve-grpc  the message PredictionsRequest as JSON; its input `data` or `body` holds a request

Source: https://github.com/kserve/open-inference-protocol; the extension is Triton's, extension_binary_data.md.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from marctl_handlers.core.columns import Column
from marctl_handlers.core.errors import HandlerError, Invalid, NotJson, NotSupported
from marctl_handlers.core.forms import Decoded, Form, Result
from marctl_handlers.core.json_form import DECODING, plain, refuse_many, schema_error
from marctl_handlers.core.messages import Model, Reply, Request
from marctl_handlers.core.pipeline import Pipeline, plain_form
from marctl_handlers.core.task import Task
from marctl_handlers.protocols.tensors import Tensor, check, flat, of_column, pack, text_of, unpack

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
    """`data` holds the values, flat or nested like the shape; if it is absent, they follow the JSON as raw bytes."""

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
    """One output; `binary_data_size` in `parameters` says that its values follow the JSON as raw bytes."""

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


def forms(pipeline: Pipeline) -> dict[str, Form]:
    """Every form that the gateway may name, for one version."""
    task, model = pipeline.task, pipeline.model
    return {
        "open": OpenForm(task, model),
        "open-grpc": OpenGrpcForm(task, model),
        "open-metadata": MetadataForm(task, model),
        "torchserve-grpc": TorchServeForm(task),
    }


class OpenForm(Form):
    """The protocol's JSON, which raw tensors may follow. One bad row fails its request: it has no place for errors."""

    def __init__(self, task: AnyTask, model: Model) -> None:
        self._task = task
        self._model = model

    def decode(self, request: Request) -> Decoded:
        """A question per row. Raises NotJson, Invalid, TooLarge or NotSupported."""
        if not self._task.inputs:
            raise NotSupported(f"model {self._model} has no tensors; use /predictions")
        asked, given = self._read(request)
        requested(self._task, asked.outputs)
        rows = rows_of(self._task.inputs, given)
        refuse_many(len(rows), self._task.settings.max_instances)
        return Decoded([question_of(self._task, row, i) for i, row in enumerate(rows)], len(rows) > 1, asked)

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        """Raises the first row's error."""
        answers = list(without_errors(results))
        columns = requested(self._task, decoded.asked.outputs)
        outputs = [of_column(column, [getattr(answer, column.name) for answer in answers]) for column in columns]
        # Not always this worker's: the last known answer may be another version's.
        source = self._model.name, headers.get("x-model-version", self._model.version)
        return self._write(source, outputs, decoded.asked, headers)

    def refuse(self, error: HandlerError, headers: Mapping[str, str]) -> Reply:
        """One text: the protocol knows no more, and its clients show no more."""
        return Reply(to_json.encode({"error": said(error)}), error.code, error.phrase, headers)

    def _read(self, request: Request) -> tuple[Any, list[Tensor]]:
        """A header says where the JSON ends and the raw tensors begin."""
        body, length = request.body or b"", request.header(JSON_LENGTH_HEADER)
        end = len(body)
        if length is not None:
            if not re.fullmatch(r"[0-9]{1,10}", length) or int(length) > end:
                raise Invalid(f"{JSON_LENGTH_HEADER} is no number up to {end}, the length of the body")
            end = int(length)
        asked = decode(from_json, body[:end])
        return asked, tensors(asked, body[end:])

    def _write(
        self, source: tuple[str, str], outputs: Sequence[Tensor], asked: Any, headers: Mapping[str, str]
    ) -> Reply:
        """Raw bytes after the JSON for the outputs that were asked for in that way."""
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
            return Reply(body, headers=headers)
        return Reply(body + after, headers={**headers, JSON_LENGTH_HEADER: str(len(body))}, content_type=BINARY)


class OpenGrpcForm(OpenForm):
    """The message ModelInferRequest as protobuf writes it in JSON; so is the answer."""

    def refuse(self, error: HandlerError, headers: Mapping[str, str]) -> Reply:
        return Reply(said(error).encode(), error.code, error.phrase, headers)

    def _read(self, request: Request) -> tuple[Any, list[Tensor]]:
        asked = decode(from_message, request.body)
        return asked, message_tensors(asked)

    def _write(
        self, source: tuple[str, str], outputs: Sequence[Tensor], asked: Any, headers: Mapping[str, str]
    ) -> Reply:
        """Raw if the inputs were raw, else in the fields of each type."""
        raw = bool(asked.raw_input_contents)
        entries = [OutputMessage(t.name, t.datatype, t.shape, UNSET if raw else contents_of(t)) for t in outputs]
        apart = [pack(tensor) for tensor in outputs] if raw else []
        return Reply(to_json.encode(ResponseMessage(*source, entries, asked.id, apart)), headers=headers)


class MetadataForm(OpenForm):
    """No body; the answer tells the task's inputs and outputs."""

    def decode(self, request: Request) -> Any:
        def described(columns: Sequence[Column]) -> list[TensorMetadata]:
            return [TensorMetadata(column.name, column.datatype, column.shape) for column in columns]

        name, version = self._model.name, self._model.version
        told = ModelMetadata(name, [version], PLATFORM, described(self._task.inputs), described(self._task.outputs))
        return Reply(to_json.encode(told))


class TorchServeForm(Form):
    """TorchServe's gRPC message: its input `data` or `body` holds a plain request."""

    def __init__(self, task: AnyTask) -> None:
        self._plain = task.form() or plain_form(task)

    def decode(self, request: Request) -> Decoded | Reply:
        given: dict[str, bytes] = decode(from_torchserve, request.body).input
        return self._plain.decode(replace(request, body=given.get("body", given.get("data"))))

    def encode(self, decoded: Decoded, results: Sequence[Result], headers: Mapping[str, str]) -> Reply:
        reply = self._plain.encode(decoded, results, headers)
        return replace(reply, body=to_json.encode({"prediction": reply.body}))

    def refuse(self, error: HandlerError, headers: Mapping[str, str]) -> Reply:
        return Reply(f"{error.error}: {error}".encode(), error.code, error.phrase, headers)


def decode(decoder: msgspec.json.Decoder[Any], body: bytes | None) -> Any:
    try:
        return decoder.decode(body or b"")
    except msgspec.ValidationError as err:
        # In the protocol's own terms, `inputs[0].shape`; `$.` begins a path in a task's question.
        raise Invalid(str(err).replace("`$.", "`")) from err
    except DECODING as err:
        raise NotJson(f"the request is not JSON: {plain(err)}") from err


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
    """The same for gRPC, which has a field of values per type, or raw bytes beside the inputs."""
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


def rows_of(columns: Sequence[Column], given: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The fields of each row. Raises Invalid if an input is missing, unknown, of another type or of another length."""
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
    if not counts:
        raise Invalid(f"the request has no inputs, so it has no rows; there are: {expected}")
    if len(set(counts.values())) > 1:
        raise Invalid(f"the inputs have different numbers of rows: {counts}")
    return [fields_of(rows, i) for i in range(next(iter(counts.values())))]


def fields_of(rows: Mapping[Column, Sequence[Any]], i: int) -> dict[str, Any]:
    return {c.name: values[i] for c, values in rows.items() if not (c.optional and values[i] in ("", []))}


def question_of(task: AnyTask, row: dict[str, Any], i: int) -> msgspec.Struct | HandlerError:
    try:
        question: msgspec.Struct = msgspec.convert(row, task.question_type)
    except msgspec.ValidationError as err:
        return schema_error(err, lambda: row, f"$.instances[{i}]")
    return question


def without_errors(results: Sequence[Result]) -> Iterator[msgspec.Struct]:
    for result in results:
        if isinstance(result, HandlerError):
            raise result
        yield result


def contents_of(tensor: Tensor) -> dict[str, list[Any]]:
    values = tensor.values
    if tensor.datatype == "BYTES":
        values = [b64encode(value.encode("utf-8", "surrogatepass")).decode() for value in values]
    return {CONTENTS[tensor.datatype]: values}


def said(error: HandlerError) -> str:
    return f"{error.error}: {in_tensor_terms(str(error))}"


def in_tensor_terms(detail: str) -> str:
    """`$.instances[3].choices[1]` is the input choices at [3, 1]; an example of a plain request is no help here."""
    detail = re.sub(r"; expected \{.*$", "", detail)
    detail = re.sub(r"`\$\.(?!instances\b)", "`$.instances[0].", detail)
    detail = re.sub(r"`\$\.instances\[(\d+)\]\.(\w+)\[(\d+)\]`", r"`\2[\1, \3]`", detail)
    detail = re.sub(r"`\$\.instances\[(\d+)\]\.(\w+)`", r"`\2[\1]`", detail)
    return re.sub(r"`\$\.instances\[(\d+)\]`", r"row \1", detail)
