"""Requests of the Open Inference Protocol, written and read by Triton's own client code, get the plain answers."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from marctl_handlers.core.messages import Reply, Request
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.protocols.tensors import NUMBERS, Tensor, pack, unpack
from tests.handlers.loading import load
from tests.questions import some_questions

GOOD = {"question": "Why?", "choices": ["a knife", "a cloud"]}


@pytest.fixture(scope="module")
def quiz(tiny_model: Callable[[str], Path]) -> Pipeline:
    return load(tiny_model("bert"), max_instances=6)


def request(form: str, body: bytes | None, length: int | None = None) -> Request:
    headers = {"x-inference-protocol": form}
    if length is not None:
        headers["inference-header-content-length"] = str(length)
    return Request(body, "id-1", headers=headers)


def one(quiz: Pipeline, form: str, body: bytes | None, length: int | None = None) -> Reply:
    return quiz.answer([request(form, body, length)])[0]


def plain(quiz: Pipeline, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    replies = quiz.answer([Request(json.dumps(question).encode(), "id-1") for question in questions])
    return [json.loads(reply.body) for reply in replies]


def triton_inputs(questions: list[dict[str, Any]], binary: bool) -> list[InferInput]:
    width = max(len(question["choices"]) for question in questions)
    arrays = {
        "question": [question["question"] for question in questions],
        "choices": [question["choices"] + [""] * (width - len(question["choices"])) for question in questions],
        "context": [question.get("context", "") for question in questions],
    }
    found = []
    for name, rows in arrays.items():
        array = np.array(rows, dtype=object)
        found.append(InferInput(name, list(array.shape), "BYTES").set_data_from_numpy(array, binary_data=binary))
    return found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_carry_the_same_questions_and_answers(quiz: Pipeline, binary_in: bool, binary_out: bool) -> None:
    questions = some_questions(4, seed=3)
    outputs = [InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "label", "prediction")]
    body, length = InferenceServerClient.generate_request_body(triton_inputs(questions, binary_in), outputs=outputs)
    reply = one(quiz, "open", body, length)
    expected = plain(quiz, questions)
    size = reply.headers.get("inference-header-content-length")
    assert (size is not None) == binary_out
    result = InferenceServerClient.parse_response_body(reply.body, header_length=size and int(size))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["probabilities", "label", "prediction"]
    assert result.as_numpy("prediction").tolist() == [entry["prediction"] for entry in expected]
    probabilities = result.as_numpy("probabilities")
    for row, entry in zip(probabilities, expected, strict=True):
        count = len(entry["probabilities"])
        np.testing.assert_allclose(row[:count], entry["probabilities"], atol=2e-6)
        assert not row[count:].any()
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
    assert labels == [entry["label"] for entry in expected]


@pytest.mark.parametrize("raw", [True, False])
def test_a_message_carries_the_same_questions_and_answers(quiz: Pipeline, raw: bool) -> None:
    questions = some_questions(3, seed=4)
    message = ModelInferRequest(model_name="quiz", id="order-7")
    for given in triton_inputs(questions, binary=True):
        tensor = message.inputs.add(name=given.name(), datatype="BYTES", shape=given.shape())
        if raw:
            message.raw_input_contents.append(given._get_binary_data())
        else:
            texts = unpack("", "BYTES", given._get_binary_data())
            tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    body = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    ).encode()
    reply = one(quiz, "open-grpc", body)
    response = json_format.Parse(reply.body, ModelInferResponse())
    expected = plain(quiz, questions)
    assert (response.model_name, response.model_version, response.id) == ("quiz", "1.0", "order-7")
    assert [output.name for output in response.outputs] == [
        "prediction",
        "label",
        "confidence",
        "probabilities",
        "truncated",
    ]
    chosen = [entry["prediction"] for entry in expected]
    if raw:
        assert np.frombuffer(response.raw_output_contents[0], "<i8").tolist() == chosen
    else:
        assert list(response.outputs[0].contents.int64_contents) == chosen
        assert [text.decode() for text in response.outputs[1].contents.bytes_contents] == [e["label"] for e in expected]


def test_metadata_is_the_tasks_own(quiz: Pipeline) -> None:
    told = json_format.Parse(one(quiz, "open-metadata", None).body, ModelMetadataResponse())
    assert (told.name, list(told.versions)) == ("quiz", ["1.0"])
    assert [entry.name for entry in told.inputs] == [column.name for column in quiz.task.inputs]
    assert [list(entry.shape) for entry in told.outputs] == [[-1], [-1], [-1], [-1, -1], [-1]]


def test_a_torchserve_message_carries_a_plain_request(quiz: Pipeline) -> None:
    body = json.dumps({"model_name": "quiz", "input": {"data": b64encode(json.dumps(GOOD).encode()).decode()}})
    reply = one(quiz, "torchserve-grpc", body.encode())
    told = json.loads(b64decode(json.loads(reply.body)["prediction"]))
    assert told["probabilities"] == plain(quiz, [GOOD])[0]["probabilities"]


def test_a_torchserve_message_is_refused_in_terms_of_the_request_that_it_carries(quiz: Pipeline) -> None:
    bad = b64encode(b'{"question": "Why?", "choices": ["a", 3]}').decode()
    reply = one(quiz, "torchserve-grpc", json.dumps({"input": {"body": bad}}).encode())
    assert reply.code == 422
    assert reply.body.startswith(b"invalid_request: Expected `str`, got `int` - at `$.choices[1]`; expected {")


def test_all_forms_share_a_batch_and_each_gets_its_own_answer(quiz: Pipeline) -> None:
    body, length = InferenceServerClient.generate_request_body(triton_inputs([GOOD], binary=True))
    good = Request(json.dumps(GOOD).encode(), "id-1")
    sent = [good, request("open", body, length), request("open", b"{"), request("open-metadata", None), good]
    replies = quiz.answer(sent)
    assert [reply.code for reply in replies] == [200, 200, 400, 200, 200]
    assert json.loads(replies[0].body)["prediction"] == json.loads(replies[4].body)["prediction"]


def tensor(name: str, data: Any, shape: list[int] | None = None, datatype: str = "BYTES", **more: Any) -> Any:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data, **more}


QUESTION, CHOICES = tensor("question", ["Why?"]), tensor("choices", ["a", "b"], [1, 2])
TWO, TWICE = tensor("question", ["Why?", "How?"]), tensor("choices", ["a", "b", "a", "b"], [2, 2])
DEEP = b'{"inputs": [{"name": "question", "datatype": "BYTES", "shape": [1], "data": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (None, 400, "not_json"),
        (b"hello", 400, "not_json"),
        (DEEP, 400, "nested too deeply"),
        ({}, 422, "missing required field `inputs`"),
        (
            {"inputs": []},
            422,
            "input question is missing; there are: question BYTES, choices BYTES, context BYTES (opt",
        ),
        ({"inputs": [QUESTION]}, 422, "input choices is missing"),
        ({"inputs": [QUESTION, CHOICES, tensor("extra", ["x"])]}, 422, "no input extra"),
        ({"inputs": [tensor("question", [1], datatype="INT64"), CHOICES]}, 422, "of type INT64"),
        ({"inputs": [QUESTION, tensor("choices", ["a", "b"])]}, 422, "expected [rows, values]"),
        ({"inputs": [tensor("question", ["a"], [1, 1, 1]), CHOICES]}, 422, "expected [rows]"),
        ({"inputs": [QUESTION, tensor("choices", ["a", "b"], [1, 3])]}, 422, "2 values, its shape [1, 3]"),
        ({"inputs": [QUESTION, tensor("choices", ["a", "b"], [-1, -2])]}, 422, "its shape [-1, -2]"),
        ({"inputs": [tensor("question", ["a", "b"]), CHOICES]}, 422, "different numbers of rows"),
        ({"inputs": [tensor("question", [], [0]), tensor("choices", [], [0, 2])]}, 422, "at least one instance"),
        ({"inputs": [tensor("question", [7]), CHOICES]}, 422, "Expected `str`, got `int` - at `question[0]`"),
        (
            {"inputs": [QUESTION, tensor("choices", ["a", "", "b"], [1, 3])]},
            422,
            "choice 2 is empty - at `choices[0, 1]`",
        ),
        (
            {"inputs": [QUESTION, tensor("choices", ["a", ""], [1, 2])]},
            422,
            "1 choice; at least 2 are needed - at `choices[0]`",
        ),
        ({"inputs": [TWO, tensor("choices", ["a", "b", 3, "c"], [2, 2])]}, 422, "got `int` - at `choices[1, 0]`"),
        ({"inputs": [tensor("question", ["Why?", ""]), TWICE]}, 422, "question is empty - at `question[1]`"),
        ({"inputs": [{"name": "question", "datatype": "BYTES", "shape": [1]}, CHOICES]}, 422, "question has no data"),
        ({"inputs": [QUESTION, CHOICES], "outputs": [{"name": "logits"}]}, 422, "no output logits"),
        (
            {"inputs": [QUESTION, CHOICES], "outputs": [{"name": "label", "parameters": {"classification": 1}}]},
            422,
            "classification is not supported",
        ),
        (
            {"inputs": [tensor("question", ["a"] * 7), tensor("choices", ["a"] * 14, [7, 2])]},
            413,
            "7 instances; at most 6 are allowed",
        ),
        (
            {"inputs": [tensor("question", None, [1], parameters={"binary_data_size": 5}), CHOICES]},
            422,
            "at `inputs[0].data`",
        ),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else None,
)
def test_a_bad_request_is_told_in_the_protocols_one_text(quiz: Pipeline, body: Any, code: int, words: str) -> None:
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    reply = one(quiz, "open", content)
    told = json.loads(reply.body)
    assert (reply.code, list(told)) == (code, ["error"])
    assert words in told["error"]
    assert "$.instances[" not in told["error"]
    assert one(quiz, "open-grpc", content).code in (400, 422)


@pytest.mark.parametrize(
    ("raw", "size", "words"),
    [
        (b"\x04\x00\x00\x00Why?", 8, ""),
        (b"\x04\x00\x00\x00Why?", 9, "8 bytes are left"),
        (b"\x04\x00\x00\x00Why?", -1, "binary_data_size is -1"),
        (b"\x04\x00\x00\x00Why?", "8", "binary_data_size is 8"),
        (b"\x05\x00\x00\x00Why?", 8, "ends within an element"),
        (b"\x04\x00", 2, "ends within an element"),
        (b"\x01\x00\x00\x00\xff", 5, "not UTF-8"),
        (b"\x04\x00\x00\x00Why?more", 8, "4 bytes are left after the last input"),
    ],
)
def test_raw_tensors_are_read_within_their_bounds(quiz: Pipeline, raw: bytes, size: Any, words: str) -> None:
    question = {"name": "question", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [question, CHOICES]}).encode()
    reply = one(quiz, "open", head + raw, len(head))
    assert reply.code == (422 if words else 200), reply.body
    assert words in reply.body.decode()


@pytest.mark.parametrize("length", ["-1", "x", "99999", ""])
def test_a_wrong_length_of_the_json_is_refused(quiz: Pipeline, length: str) -> None:
    headers = {"x-inference-protocol": "open", "inference-header-content-length": length}
    reply = quiz.answer([Request(b'{"inputs": []}', "id", headers=headers)])[0]
    assert (reply.code, b"inference-header-content-length" in reply.body) == (422, True)


@pytest.mark.parametrize("datatype", sorted(NUMBERS))
def test_raw_values_are_numpys(datatype: str) -> None:
    from tritonclient.utils import triton_to_np_dtype

    values = np.array([0, 1, 1, 0], dtype=triton_to_np_dtype(datatype))
    raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
    assert unpack("x", datatype, raw) == values.tolist()
    assert pack(Tensor("x", datatype, [4], values.tolist())) == raw


def test_a_question_that_breaks_the_model_is_this_requests_500(quiz: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(quiz.task.model, "run", broken)  # type: ignore[attr-defined]  # a MultipleChoice's
    reply = one(quiz, "open", json.dumps({"inputs": [QUESTION, CHOICES]}).encode())
    assert (reply.code, json.loads(reply.body)["error"].split(":")[0]) == (500, "model_failed")
