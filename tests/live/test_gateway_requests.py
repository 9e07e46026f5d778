"""What the gateway lets through to TorchServe, and what it adds to it: a real Envoy before a stand-in."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.live.envoys import Standin, TestGateway, gateway_with_server, hangs, until

pytestmark = pytest.mark.live
ASKING = ["/predict", "/v1/predict", "/explain", "/predictions/mcqa", "/predictions/mcqa/2.0", "/explanations/mcqa"]
ASKING += ["/v1/models/mcqa:predict", "/v1/models/mcqa:explain", "/embed", "/feedback"]
SHOWING = ["/healthz", "/ready", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/mcqa"]
INFERRING = ["/v2/models/mcqa/infer", "/v2/models/mcqa/versions/2.0/infer"]
DESCRIBING = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/mcqa", "/v2/models/mcqa/ready"]
DESCRIBING += ["/v2/models/mcqa/versions/2.0", "/v2/models/mcqa/versions/2.0/ready"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, TestGateway]]:
    with gateway_with_server(tmp_path_factory.mktemp("requests")) as both:
        yield both


@pytest.fixture
def server(shared: tuple[Standin, TestGateway]) -> Standin:
    shared[0].forget()
    return shared[0]


@pytest.fixture
def gateway(shared: tuple[Standin, TestGateway], server: Standin) -> TestGateway:
    shared[1].set(split={"1.0": 100})
    return shared[1]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PATCH"])
def test_only_post_asks(server: Standin, gateway: TestGateway, method: str) -> None:
    for path in (*ASKING, *INFERRING):
        got = requests.request(method, gateway.url + path, timeout=20)
        assert (got.status_code, got.headers["allow"]) == (405, "POST"), path
        if method != "HEAD":
            assert got.json()["error"].startswith("method_not_allowed")
            assert set(got.json()) == ({"error"} if path in INFERRING else {"error", "detail"})
    assert not server.seen
    assert not server.others


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_what_is_shown_is_not_changed(server: Standin, gateway: TestGateway, method: str) -> None:
    for path in (*SHOWING, *DESCRIBING):
        got = requests.request(method, gateway.url + path, timeout=20)
        assert (got.status_code, got.headers["allow"]) == (405, "GET" if path in DESCRIBING else "GET, HEAD"), path
        assert got.json()["error"].startswith("method_not_allowed")
    assert not server.seen
    assert not server.others


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "DELETE", "HEAD", "GET", "PROPFIND"])
def test_no_other_path_reaches_torchserve(server: Standin, gateway: TestGateway, method: str) -> None:
    for path in ("/*", "/api-description", "/models", "/ping", "/elsewhere"):
        assert requests.request(method, gateway.url + path, timeout=20).status_code == 404, path
    page = requests.request(method, gateway.url, timeout=20)
    assert page.status_code == (200 if method in ("GET", "HEAD") else 405)
    assert not server.seen
    assert not server.others


@pytest.mark.parametrize("path", ["/predict/", "/predictions/mcqa/", "/predictions/mcqa/2.0/", "/v1/models/", "/v2/"])
def test_a_trailing_slash_is_told(server: Standin, gateway: TestGateway, path: str) -> None:
    got = gateway.ask(path)
    assert (got.status_code, got.json()["error"]) == (404, "no_such_path")
    assert "without it" in got.json()["detail"]
    assert not server.seen


def test_what_is_served_is_listed_in_the_v1_protocol(gateway: TestGateway) -> None:
    assert requests.get(f"{gateway.url}/v1/models", timeout=20).json() == {"models": ["embed", "mcqa"]}
    gateway.look(gateway.watcher(Path("/nowhere")))
    until(lambda: requests.get(f"{gateway.url}/v1/models/mcqa", timeout=20).ok)
    got = requests.get(f"{gateway.url}/v1/models/mcqa", timeout=20).json()
    assert got == {"name": "mcqa", "versions": ["1.0", "2.0", "3.0"], "ready": True}
    assert requests.get(f"{gateway.url}/v1/models/nobody", timeout=20).json()["error"] == "no_such_model"


def test_a_wrong_verb_is_told_with_the_right_ones(server: Standin, gateway: TestGateway) -> None:
    got = gateway.ask("/v1/models/mcqa:classify")
    assert (got.status_code, got.json()["error"]) == (404, "no_such_path")
    assert ":predict and :explain" in got.json()["detail"]
    assert gateway.ask("/v1/models/nobody:predict").json()["error"] == "no_such_model"
    assert not server.seen


@pytest.mark.parametrize("path", ["/predict", "/v1/predict"])
def test_a_model_beside_the_question_gets_it(server: Standin, gateway: TestGateway, path: str) -> None:
    body = {"model": "embed", "question": "?"}
    assert gateway.ask(path, body).status_code == 200
    [(reached, _, received)] = server.seen
    assert (reached, json.loads(received)) == ("/predictions/embed/1.0", body)


def test_a_worker_is_told_how_long_its_answer_is_waited_for(server: Standin, gateway: TestGateway) -> None:
    """In ms, by each attempt's own time; no client can choose it."""
    gateway.set(split={"1.0": 100}, timeout_s=7)
    gateway.ask(x_request_timeout_ms="999999")
    gateway.ask("/predictions/mcqa/2.0", x_request_timeout_ms="999999")
    gateway.ask("/feedback", x_request_timeout_ms="999999")
    gateway.ask("/v2/models/mcqa/infer", x_request_timeout_ms="999999")
    gateway.ask("/explain", x_request_timeout_ms="999999")
    told = [headers["x-request-timeout-ms"] for _, headers, _ in server.seen]
    assert told == ["7000", "7000", "7000", "7000", "60000"]
    server.seen.clear()
    gateway.set(split={"3.0": 100}, fallback=["2.0", "1.0"], shadow={"1.0": 100}, timeout_s=1)
    server.behave |= {"3.0": hangs, "2.0": hangs}
    gateway.ask(x_request_timeout_ms="999999")
    server.release.set()
    told_by_path = {(path[-3:], "x-fallback-from" in h): h["x-request-timeout-ms"] for path, h, _ in server.seen}
    assert told_by_path[("3.0", False)] == "500"
    assert told_by_path[("2.0", True)] == "250"
    assert told_by_path[("1.0", True)] == "250"
    assert {h["x-request-timeout-ms"] for _, h, _ in server.seen if "x-shadow-version" in h} == {"1000"}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_a_compressed_body_is_told_with_the_cure(server: Standin, gateway: TestGateway, encoding: str) -> None:
    head = {"content-encoding": encoding, "content-type": "application/json"}
    got = requests.post(f"{gateway.url}/predict", data=gzip.compress(b"{}"), headers=head, timeout=20)
    assert (got.status_code, got.json()["error"]) == (415, "unsupported_encoding")
    assert "without the header content-encoding" in got.json()["detail"]
    assert not server.seen


def test_a_body_that_is_said_to_be_as_it_is_passes(server: Standin, gateway: TestGateway) -> None:
    assert gateway.ask(content_encoding="Identity").status_code == 200


@pytest.mark.parametrize("expected", ["the-moon", "100-continue", "100-continue, the-moon"])
def test_no_expectation_reaches_torchserve(server: Standin, gateway: TestGateway, expected: str) -> None:
    """It would take the body of an expectation that it refuses for the next request of the connection."""
    assert gateway.ask(expect=expected).status_code == 200
    [(_, headers, _)] = server.seen
    assert "expect" not in {name.lower() for name in headers}
