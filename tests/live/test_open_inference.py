"""The Open Inference Protocol and TorchServe's gRPC service, asked by their own clients through the gateway."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import google.rpc.status_pb2
import grpc
import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from grpc_tools import protoc
from tritonclient.utils import InferenceServerException

from marctl.stack.torchserve import server_home
from tests.live.conftest import Site

pytestmark = pytest.mark.live

QUESTIONS = [
    {"question": "Where might he go?", "choices": ["a knife", "a cloud", "a lake"]},
    {"question": "What is it?", "choices": ["milk", "cereal"], "context": "He poured orange juice on it."},
    {"question": "Why not 42?", "choices": ["a", "b", "c", "naïvely"], "context": "Against common sense."},
]
OUTPUTS = ["prediction", "label", "confidence", "probabilities"]
Protocol = ModuleType
PROTOCOLS = pytest.mark.parametrize("protocol", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])


@pytest.fixture(scope="module")
def url(quiz_gateway: Site) -> str:
    return str(quiz_gateway.call("status")["gateway"])


@pytest.fixture(scope="module")
def clients(url: str) -> Iterator[dict[str, Any]]:
    made = {
        protocol.__name__: protocol.InferenceServerClient(url.removeprefix("http://"))
        for protocol in (tritonclient.http, tritonclient.grpc)
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def client(clients: dict[str, Any], protocol: Protocol) -> Any:
    return clients[protocol.__name__]


def texts(rows: list[Any]) -> np.ndarray[Any, Any]:
    return np.array(rows, dtype=object)


def inputs_of(protocol: Protocol, questions: list[dict[str, Any]], **how: Any) -> list[Any]:
    width = max(len(question["choices"]) for question in questions)
    arrays = {
        "question": texts([question["question"] for question in questions]),
        "choices": texts([question["choices"] + [""] * (width - len(question["choices"])) for question in questions]),
        "context": texts([question.get("context", "") for question in questions]),
    }
    found = []
    for name, array in arrays.items():
        found.append(protocol.InferInput(name, list(array.shape), "BYTES"))
        found[-1].set_data_from_numpy(array, **how)
    return found


def predictions(url: str, version: str) -> list[dict[str, Any]]:
    found = []
    for question in QUESTIONS:
        got = requests.post(f"{url}/predictions/quiz/{version}", json=question, timeout=30)
        assert got.status_code == 200, got.text
        found.append(got.json())
    return found


def assert_equal(result: Any, expected: list[dict[str, Any]]) -> None:
    width = max(len(answer["probabilities"]) for answer in expected)
    assert result.as_numpy("prediction").tolist() == [answer["prediction"] for answer in expected]
    assert result.as_numpy("prediction").dtype == np.int64
    assert [label.decode() for label in result.as_numpy("label")] == [answer["label"] for answer in expected]
    filled = [answer["probabilities"] + [0.0] * (width - len(answer["probabilities"])) for answer in expected]
    np.testing.assert_allclose(result.as_numpy("probabilities"), filled, atol=2e-6)
    np.testing.assert_allclose(result.as_numpy("confidence"), [a["confidence"] for a in expected], atol=2e-6)


@PROTOCOLS
def test_the_server_is_live_and_ready_and_says_who_it_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    told = client.get_server_metadata()
    name, extensions = (told["name"], told["extensions"]) if isinstance(told, dict) else (told.name, told.extensions)
    assert (name, list(extensions)) == ("torchserve-marctl", ["binary_tensor_data"])


@PROTOCOLS
def test_only_a_model_and_version_that_is_there_is_ready(client: Any) -> None:
    assert client.is_model_ready("quiz")
    assert client.is_model_ready("quiz", "1.0")
    assert not client.is_model_ready("quiz", "9.9")
    assert not client.is_model_ready("nobody")


@PROTOCOLS
def test_metadata_tells_the_real_inputs_and_outputs(client: Any, protocol: Protocol) -> None:
    told = client.get_model_metadata("quiz", "1.0", **({"as_json": True} if protocol is tritonclient.grpc else {}))
    assert (told["name"], told["versions"]) == ("quiz", ["1.0"])
    inputs = {entry["name"]: (entry["datatype"], list(map(int, entry["shape"]))) for entry in told["inputs"]}
    assert inputs == {"question": ("BYTES", [-1]), "choices": ("BYTES", [-1, -1]), "context": ("BYTES", [-1])}
    result = client.infer("quiz", inputs_of(protocol, QUESTIONS), model_version="1.0")
    for entry in told["outputs"]:
        array = result.as_numpy(entry["name"])
        assert array.ndim == len(entry["shape"])
        given = result.get_output(entry["name"])
        assert (given["datatype"] if isinstance(given, dict) else given.datatype) == entry["datatype"]


@PROTOCOLS
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_pinned_version_answers_as_it_does_elsewhere(client: Any, protocol: Protocol, url: str, version: str) -> None:
    """Three questions of different lengths in one request, and the versions differ."""
    result = client.infer("quiz", inputs_of(protocol, QUESTIONS), model_version=version, request_id="order-7")
    assert_equal(result, predictions(url, version))
    told = result.get_response()
    found = (told["model_version"], told["id"]) if isinstance(told, dict) else (told.model_version, told.id)
    assert found == (version, "order-7")


def test_torchserves_own_grpc_ports_are_open_to_nobody_else(quiz_gateway: Site) -> None:
    connections = psutil.Process(quiz_gateway.call("status")["pid"]).net_connections("inet")
    listeners = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert listeners <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_the_two_versions_can_be_told_apart(url: str) -> None:
    first, second = predictions(url, "1.0"), predictions(url, "2.0")
    assert [answer["probabilities"] for answer in first] != [answer["probabilities"] for answer in second]


@pytest.mark.parametrize(("binary_in", "binary_out"), [(True, False), (False, True), (False, False)])
def test_json_and_raw_tensors_say_the_same(
    clients: dict[str, Any], url: str, binary_in: bool, binary_out: bool
) -> None:
    http = tritonclient.http
    outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    inputs = inputs_of(http, QUESTIONS, binary_data=binary_in)
    result = clients[http.__name__].infer("quiz", inputs, model_version="1.0", outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == OUTPUTS
    if binary_out:
        assert_equal(result, predictions(url, "1.0"))
    else:
        found = {output["name"]: output["data"] for output in result.get_response()["outputs"]}
        assert found["label"] == [answer["label"] for answer in predictions(url, "1.0")]


@PROTOCOLS
def test_the_split_is_followed_and_users_stay_on_their_side(
    quiz_gateway: Site, client: Any, protocol: Protocol, url: str
) -> None:
    quiz_gateway.call("route", "split", "quiz", "1.0=50", "2.0=50")
    try:
        inputs = inputs_of(protocol, QUESTIONS[:1])

        def side(user: str) -> str:
            told = client.infer("quiz", inputs, headers={"x-user-id": user}).get_response()
            return str(told["model_version"] if isinstance(told, dict) else told.model_version)

        users = [f"user-{i}" for i in range(60)]
        found = {user: side(user) for user in users}
        assert 12 < list(found.values()).count("1.0") < 48
        assert {user: side(user) for user in users[:20]}.items() <= found.items()
        elsewhere = {
            user: requests.post(
                f"{url}/predictions/quiz", json=QUESTIONS[0], headers={"x-user-id": user}, timeout=30
            ).headers["x-model-version"]
            for user in users[:20]
        }
        assert elsewhere.items() <= found.items()
        pinned = client.infer("quiz", inputs, headers={"x-model-version": "1.0"}).get_response()
        assert (pinned["model_version"] if isinstance(pinned, dict) else pinned.model_version) == "1.0"
    finally:
        quiz_gateway.call("route", "split", "quiz", "--default")


def bad_inputs(protocol: Protocol) -> dict[str, list[Any]]:
    good = inputs_of(protocol, QUESTIONS)
    number = protocol.InferInput("question", [3], "INT64")
    number.set_data_from_numpy(np.array([1, 2, 3]))
    short = inputs_of(protocol, QUESTIONS[:2])
    lonely = inputs_of(protocol, [{"question": "Why?", "choices": ["only one"]}])
    return {
        "input choices is missing": good[:1],
        "input question is of type INT64": [number, *good[1:]],
        "the inputs have different numbers of rows": [good[0], short[1]],
        "`choices[0]`": lonely,
        "no input extra": [*good, *renamed(protocol, "extra")],
    }


def renamed(protocol: Protocol, name: str) -> list[Any]:
    made = protocol.InferInput(name, [3], "BYTES")
    made.set_data_from_numpy(texts(["a", "b", "c"]))
    return [made]


@PROTOCOLS
def test_a_bad_input_is_told_in_words(client: Any, protocol: Protocol) -> None:
    for words, inputs in bad_inputs(protocol).items():
        with pytest.raises(InferenceServerException) as told:
            client.infer("quiz", inputs)
        assert words in told.value.message()
        assert told.value.message().startswith("invalid_request: ")
        assert told.value.status() in ("422", "StatusCode.INVALID_ARGUMENT")
    assert client.infer("quiz", inputs_of(protocol, QUESTIONS)) is not None


@PROTOCOLS
def test_what_is_not_there_is_named(client: Any, protocol: Protocol) -> None:
    for where, words in ((("nobody", ""), "no such model; served: quiz"), (("quiz", "9.9"), "served: 1.0, 2.0")):
        for ask in (
            lambda where=where: client.infer(where[0], inputs_of(protocol, QUESTIONS), model_version=where[1]),
            lambda where=where: client.get_model_metadata(*where),
        ):
            with pytest.raises(InferenceServerException, match=words) as told:
                ask()
            assert told.value.status() in ("404", "StatusCode.NOT_FOUND")


@pytest.fixture(scope="module")
def torchserve(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Calls by name of TorchServe's service, with stubs made from its own file."""
    folder = tmp_path_factory.mktemp("proto")
    with zipfile.ZipFile(server_home() / "ts" / "frontend" / "model-server.jar") as jar:
        (folder / "inference.proto").write_bytes(jar.read("proto/inference.proto"))
    common = Path(google.rpc.status_pb2.__file__).parents[2]
    builtin = Path(protoc.__file__).parent / "_proto"
    options = [f"-I{path}" for path in (folder, common, builtin)]
    done = protoc.main(["", *options, f"--python_out={folder}", f"--grpc_python_out={folder}", "inference.proto"])
    assert done == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import inference_pb2
        import inference_pb2_grpc

        with grpc.insecure_channel(url.removeprefix("http://")) as channel:
            yield inference_pb2, inference_pb2_grpc.InferenceAPIsServiceStub(channel)


def test_torchserves_own_grpc_clients_are_answered(torchserve: Any, url: str) -> None:
    messages, stub = torchserve
    assert stub.Ping(messages_empty()).health == "Healthy"
    for version in ("1.0", "2.0"):
        data = {"data": json.dumps(QUESTIONS[0]).encode()}
        asked = messages.PredictionsRequest(model_name="quiz", model_version=version, input=data)
        streamed = list(stub.StreamPredictions(asked))
        for reply in (stub.Predictions(asked), *streamed):
            answer = json.loads(reply.prediction)
            expected = predictions(url, version)[0]
            assert (answer["model_version"], answer["probabilities"]) == (version, expected["probabilities"])
        assert len(streamed) == 1


def messages_empty() -> Any:
    from google.protobuf.empty_pb2 import Empty

    return Empty()


def test_torchserves_grpc_follows_the_default_and_tells_errors_by_code(torchserve: Any) -> None:
    messages, stub = torchserve
    good = {"body": json.dumps(QUESTIONS[0]).encode()}
    reply, call = stub.Predictions.with_call(
        messages.PredictionsRequest(model_name="quiz", input=good), metadata=[("x-request-id", "order-9")]
    )
    answer = json.loads(reply.prediction)
    assert (answer["model_version"], answer["prediction_id"]) == ("2.0", "order-9")
    assert dict(call.initial_metadata())["x-model-version"] == "2.0"
    bad = [
        ({"model_name": "quiz", "input": {"data": b"{}"}}, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request: "),
        ({"model_name": "quiz", "input": {"data": b"no"}}, grpc.StatusCode.INVALID_ARGUMENT, "not_json: "),
        ({"model_name": "nobody", "input": good}, grpc.StatusCode.NOT_FOUND, "no_such_model: "),
        ({"model_name": "quiz", "model_version": "9", "input": good}, grpc.StatusCode.NOT_FOUND, "no_such_version: "),
    ]
    for fields, code, words in bad:
        with pytest.raises(grpc.RpcError) as told:
            stub.Predictions(messages.PredictionsRequest(**fields))
        assert told.value.code() is code
        assert told.value.details().startswith(words)
