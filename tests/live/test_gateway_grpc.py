"""gRPC calls at a real Envoy before stand-ins for TorchServe: the fallback, the guards and TLS hold for them too."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from marctl.gateway.settings import GatewaySettings, RateLimit, Tls
from tests.live.envoys import (
    Reply,
    Standin,
    TestGateway,
    fails,
    gateway_with_server,
    open_gateway,
    refuses,
    self_signed,
    until,
)

pytestmark = pytest.mark.live
FALLBACK = {"split": {"2.0": 100}, "fallback": ["1.0"]}
REQUEST = service_pb2.ModelInferRequest(model_name="mcqa", raw_input_contents=[b"\x00\xff"])


def infers(server: Standin) -> Reply:
    body = {"model_name": "mcqa", "raw_output_contents": [b64encode(b"\x01\xfe").decode()]}
    return 200, {"content-type": "application/json"}, json.dumps(body).encode()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, TestGateway, Any]]:
    with (
        gateway_with_server(tmp_path_factory.mktemp("grpc")) as (server, opened),
        grpc.insecure_channel(opened.url.removeprefix("http://")) as channel,
    ):
        yield server, opened, service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def server(shared: tuple[Standin, TestGateway, Any]) -> Standin:
    found = shared[0]
    found.behave = dict.fromkeys(("1.0", "2.0", "3.0"), infers)
    found.seen.clear()
    return found


@pytest.fixture
def gateway(shared: tuple[Standin, TestGateway, Any], server: Standin) -> TestGateway:
    return shared[1]


@pytest.fixture
def stub(shared: tuple[Standin, TestGateway, Any]) -> Any:
    return shared[2]


def asked(stub: Any, request: Any = REQUEST, **metadata: str) -> tuple[Any, dict[str, str]]:
    """The answer and its first metadata."""
    named = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    answer, call = stub.ModelInfer.with_call(request, metadata=named, timeout=20)
    return answer, dict(call.initial_metadata())


def refused(stub: Any, request: Any = REQUEST, **metadata: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as told:
        asked(stub, request, **metadata)
    return told.value.code(), told.value.details()


def test_a_call_becomes_a_request_whose_form_is_named(server: Standin, gateway: TestGateway, stub: Any) -> None:
    gateway.set(split={"1.0": 100})
    answer, told = asked(stub, x_request_id="order-7")
    assert list(answer.raw_output_contents) == [b"\x01\xfe"]
    assert (told["x-model-version"], told["x-request-id"]) == ("1.0", "order-7")
    assert "x-http-status" not in told
    path, headers, body = server.seen[0]
    assert (path, headers["x-inference-protocol"], headers["x-request-id"]) == (
        "/predictions/mcqa/1.0",
        "open-grpc",
        "order-7",
    )
    assert b64decode(json.loads(body)["raw_input_contents"][0]) == b"\x00\xff"


def test_a_failed_version_is_replaced_by_the_next_rung_and_labelled(
    server: Standin, gateway: TestGateway, stub: Any
) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    _, told = asked(stub)
    assert (told["x-fallback"], told["x-model-version"]) == ("1.0", "1.0")
    assert server.versions_seen() == ["2.0", "1.0"]


def test_a_pinned_version_answers_itself_or_not_at_all(server: Standin, gateway: TestGateway, stub: Any) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    pinned = service_pb2.ModelInferRequest(model_name="mcqa", model_version="2.0")
    assert refused(stub, pinned)[0] is grpc.StatusCode.UNAVAILABLE
    assert refused(stub, x_model_version="2.0")[0] is grpc.StatusCode.UNAVAILABLE
    assert server.versions_seen() == ["2.0", "2.0"]


def test_a_shadow_gets_copies_of_calls(server: Standin, gateway: TestGateway, stub: Any) -> None:
    gateway.set(split={"1.0": 100}, shadow={"2.0": 100})
    assert asked(stub)[1]["x-model-version"] == "1.0"
    until(lambda: len(server.seen) == 2)
    assert {headers["x-inference-protocol"] for _, headers, _ in server.seen} == {"open-grpc"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (413, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (500, grpc.StatusCode.INTERNAL),
        (501, grpc.StatusCode.UNIMPLEMENTED),
        (503, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_each_http_code_has_its_grpc_code(
    server: Standin, gateway: TestGateway, stub: Any, code: int, expected: grpc.StatusCode
) -> None:
    gateway.set(split={"1.0": 100})
    server.behave["1.0"] = refuses(code)
    found, words = refused(stub)
    assert found is expected
    assert "some_error" in words


def test_what_is_not_there_is_said_by_code_and_name(gateway: TestGateway, stub: Any) -> None:
    for fields, words in (
        ({"model_name": "nobody"}, "no_such_model: "),
        ({}, "no_such_model: "),
        ({"model_name": "a/b"}, "no_such_model: "),
        ({"model_name": "mcqa", "model_version": "9"}, "no_such_version: "),
        ({"model_name": "mcqa", "model_version": "1.0/x"}, "no_such_version: "),
    ):
        code, told = refused(stub, service_pb2.ModelInferRequest(**fields))
        assert (code, told.startswith(words)) == (grpc.StatusCode.NOT_FOUND, True), told
    with pytest.raises(grpc.RpcError) as told_of:
        stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
    assert told_of.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_is_no_message_is_refused_and_harms_nobody(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100})
    with grpc.insecure_channel(gateway.url.removeprefix("http://")) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for bytes_ in (b"\xff" * 50, b"\x0a\xff", b"\x3a\x7f\x00"):
            with pytest.raises(grpc.RpcError) as told:
                call(bytes_, timeout=20)
            assert told.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert not server.seen
    assert gateway.ask().status_code == 200


def test_keys_limits_and_sizes_hold_for_calls(tmp_path: Path) -> None:
    server = Standin()
    server.behave["1.0"] = infers
    settings = GatewaySettings(body_bytes=1000, rate_limit=RateLimit(2), api_keys={"alice": "a-key", "bob": "b-key"})
    opened = open_gateway(tmp_path, server.url, settings, split={"1.0": 100})
    try:
        with grpc.insecure_channel(opened.url.removeprefix("http://")) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert refused(stub)[0] is grpc.StatusCode.UNAUTHENTICATED
            assert asked(stub, x_api_key="a-key")
            large = service_pb2.ModelInferRequest(model_name="mcqa", raw_input_contents=[b"x" * 2000])
            assert refused(stub, large, x_api_key="a-key")[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            code, words = refused(stub, x_api_key="a-key")
            assert (code, words.split(":")[0]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_requests")
            assert asked(stub, x_api_key="b-key")
            assert all(stub.ServerLive(service_pb2.ServerLiveRequest()).live for _ in range(10))
    finally:
        opened.stop()
        server.shutdown()


def test_calls_come_over_tls_on_the_same_port(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    server = Standin()
    server.behave["1.0"] = infers
    opened = open_gateway(
        tmp_path / "state", server.url, GatewaySettings(tls=Tls(certificate, key)), split={"1.0": 100}
    )
    try:
        trusted = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
        with grpc.secure_channel(opened.url.removeprefix("https://"), trusted) as channel:
            assert asked(service_pb2_grpc.GRPCInferenceServiceStub(channel))[1]["x-model-version"] == "1.0"
    finally:
        opened.stop()
        server.shutdown()
