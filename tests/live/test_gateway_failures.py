"""What clients see when versions fail, are silent or are copied to: a real Envoy before stand-ins for TorchServe."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from marctl.gateway.envoy import GatewayFailed
from marctl.gateway.health import WITHOUT_WORKERS
from marctl.gateway.routes import LONGEST_ANSWER_BYTES
from marctl.gateway.settings import GatewaySettings, RateLimit, Tls
from tests.live.envoys import (
    SERVED,
    Standin,
    TestGateway,
    fails,
    gateway_with_server,
    hangs,
    open_gateway,
    refuses,
    self_signed,
    until,
    waits,
)

pytestmark = pytest.mark.live
FALLBACK = {"split": {"2.0": 100}, "fallback": ["1.0"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, TestGateway]]:
    with gateway_with_server(tmp_path_factory.mktemp("failures")) as both:
        yield both


@pytest.fixture
def server(shared: tuple[Standin, TestGateway]) -> Iterator[Standin]:
    shared[0].forget()
    yield shared[0]
    shared[0].release.set()


@pytest.fixture
def gateway(shared: tuple[Standin, TestGateway], server: Standin) -> TestGateway:
    return shared[1]


@pytest.mark.parametrize("code", [500, 502, 503, 504, 507])
def test_a_failed_version_is_replaced_by_the_next_rung_and_labelled(
    server: Standin, gateway: TestGateway, code: int
) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(code)
    got = gateway.ask(body={"question": "what?"})
    assert (got.status_code, got.json()) == (200, {"prediction": 1})
    assert (got.headers["x-fallback"], got.headers["x-model-version"]) == ("1.0", "1.0")
    assert [path for path, _, _ in server.seen] == ["/predictions/mcqa/2.0", "/predictions/mcqa/1.0"]
    assert {body for _, _, body in server.seen} == {b'{"question": "what?"}'}
    assert [headers.get("x-fallback-from") for _, headers, _ in server.seen] == [None, "2.0"]


def test_a_killed_worker_counts_as_failed_whatever_torchserve_calls_it(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(413, "Worker died.")
    assert gateway.ask().headers["x-fallback"] == "1.0"


@pytest.mark.parametrize("code", [400, 404, 413, 422, 501])
def test_what_the_client_must_mend_never_falls_back(server: Standin, gateway: TestGateway, code: int) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = refuses(code)
    got = gateway.ask()
    assert (got.status_code, got.json()) == (code, {"error": "some_error", "detail": "why"})
    assert "x-fallback" not in got.headers
    assert server.versions_seen() == ["2.0"]


def test_the_largest_body_still_falls_back_whole(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK, shadow={"3.0": 100})
    server.behave["2.0"] = fails(503)
    assert gateway.ask(body={"question": "x" * 1_000_000}).headers["x-fallback"] == "1.0"
    until(lambda: len(server.seen) == 3)
    assert {len(body) for _, _, body in server.seen} == {len('{"question": ""}') + 1_000_000}


def test_headers_that_torchserve_would_choke_on_are_a_431(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100})
    got = gateway.ask(x_long="x" * 9000)
    assert (got.status_code, got.json()["error"]) == (431, "headers_too_large")


def test_a_query_is_no_obstacle(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    assert gateway.ask("/predict?a=b").headers["x-fallback"] == "1.0"
    assert gateway.ask("/predictions/mcqa/3.0?a=b/2.0").headers["x-model-version"] == "3.0"


def test_a_model_that_fails_on_its_own_terms_falls_back_too(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = refuses(500)
    assert gateway.ask().headers["x-fallback"] == "1.0"


def test_a_silent_version_falls_back_within_the_deadline(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK, timeout_s=1)
    server.behave["2.0"] = hangs
    began = time.monotonic()
    assert gateway.ask().headers["x-fallback"] == "1.0"
    assert 0.4 < time.monotonic() - began < 1


def test_the_last_rung_has_all_of_the_time_that_is_left(server: Standin, gateway: TestGateway) -> None:
    """0.35 s here; it needs 0.2 s."""
    gateway.set(**FALLBACK, timeout_s=0.7)
    server.behave |= {"2.0": hangs, "1.0": waits}
    assert gateway.ask().headers["x-fallback"] == "1.0"


def test_the_fallback_goes_down_rung_by_rung(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"3.0": 100}, fallback=["2.0", "1.0"])
    server.behave |= {"3.0": fails(503), "2.0": fails(503)}
    got = gateway.ask()
    assert (got.status_code, got.headers["x-fallback"], got.headers["x-model-version"]) == (200, "1.0", "1.0")
    assert server.versions_seen() == ["3.0", "2.0", "1.0"]


def test_a_rung_itself_falls_only_to_those_below_it(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"2.0": 100}, fallback=["2.0", "1.0"])
    server.behave["2.0"] = fails(503)
    assert gateway.ask().headers["x-fallback"] == "1.0"
    assert server.versions_seen() == ["2.0", "1.0"]


def test_the_stale_rung_asks_another_versions_worker_what_the_routed_one_knew(
    server: Standin, gateway: TestGateway
) -> None:
    """Past the version's own route, with the name of the one that failed first."""
    gateway.set(split={"2.0": 100}, fallback=["1.0", "stale"])
    server.behave |= {"2.0": fails(503), "1.0": fails(500)}
    got = gateway.ask()
    assert (got.status_code, got.headers["x-fallback"]) == (200, "stale")
    assert [path.rpartition("/")[2] for path, _, _ in server.seen] == ["2.0", "1.0", "3.0"]
    seen = [(headers.get("x-fallback-from"), headers.get("x-fallback-stale")) for _, headers, _ in server.seen]
    assert seen == [(None, None), ("2.0", None), ("2.0", "1")]


def test_the_stale_rung_may_be_the_only_one(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 50, "2.0": 50, "3.0": 50}, fallback=["stale"])
    server.behave["2.0"] = fails(503)
    got = [gateway.ask(x_user_id=str(user)).headers.get("x-fallback") for user in range(20)]
    assert set(got) == {None, "stale"}
    assert {headers["x-fallback-from"] for _, headers, _ in server.seen if "x-fallback-stale" in headers} == {"2.0"}


def test_where_nothing_is_known_the_stale_rung_is_a_503_that_says_when_to_come_back(
    server: Standin, gateway: TestGateway
) -> None:
    gateway.set(split={"2.0": 100}, fallback=["stale"])
    server.behave = {version: fails(503) for version in ("1.0", "2.0", "3.0")}
    got = gateway.ask()
    assert (got.status_code, got.json()["error"], got.headers["retry-after"]) == (503, "unavailable", "1")
    assert len(server.seen) == 2


def test_explanations_are_not_kept_so_none_is_stale(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"2.0": 100}, fallback=["stale"])
    server.behave["2.0"] = fails(503)
    assert gateway.ask("/explain").status_code == 503
    assert server.versions_seen() == ["2.0"]


def test_below_the_last_rung_is_a_503_that_says_when_to_come_back(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK)
    server.behave |= {"2.0": fails(500), "1.0": fails(500)}
    got = gateway.ask()
    assert (got.status_code, got.json()["error"], got.headers["retry-after"]) == (503, "unavailable", "1")
    assert server.versions_seen() == ["2.0", "1.0"]


def test_without_a_fallback_torchserves_error_comes_in_the_one_form(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"2.0": 100})
    server.behave["2.0"] = fails(503)
    got = gateway.ask()
    assert got.json() == {"error": "unavailable", "detail": 'Model "x" has no worker'}
    assert (got.status_code, got.headers["retry-after"]) == (503, "1")
    assert server.versions_seen() == ["2.0"]


def test_a_silent_version_without_a_fallback_is_a_504(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"2.0": 100}, timeout_s=0.3)
    server.behave["2.0"] = hangs
    got = gateway.ask()
    assert (got.status_code, got.json()["error"]) == (504, "out_of_time")


def test_many_failures_at_once_all_fall_back(server: Standin, gateway: TestGateway) -> None:
    """Envoy's own limit is three retries at a time if nothing else is said."""
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    with ThreadPoolExecutor(16) as clients:
        got = list(clients.map(lambda _: gateway.ask(), range(100)))
    assert {(answer.status_code, answer.headers.get("x-fallback")) for answer in got} == {(200, "1.0")}


def test_a_shadow_gets_copies_and_the_client_its_own_answer(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100}, shadow={"2.0": 100, "3.0": 100})
    got = gateway.ask(x_request_id="r-1", body={"question": "copied?"})
    assert got.headers["x-model-version"] == "1.0"
    until(lambda: len(server.seen) == 3)
    assert sorted(server.versions_seen()) == ["1.0", "2.0", "3.0"]
    assert {headers["x-request-id"] for _, headers, _ in server.seen} == {"r-1"}
    assert {body for _, _, body in server.seen} == {b'{"question": "copied?"}'}


def test_a_shadow_gets_its_share(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100}, shadow={"2.0": 20})
    with requests.Session() as session:
        for _ in range(200):
            session.post(f"{gateway.url}/predict", json={}, timeout=20)
    time.sleep(0.2)
    assert 15 < server.versions_seen().count("2.0") < 70


def test_a_pinned_version_answers_itself_or_not_at_all(server: Standin, gateway: TestGateway) -> None:
    """Who tests a version must not take another one's answer for its own."""
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    assert gateway.ask(x_model_version="2.0").status_code == 503
    assert gateway.ask("/predictions/mcqa/2.0").status_code == 503


def test_a_version_is_pinned_for_the_model_that_the_body_names(server: Standin, gateway: TestGateway) -> None:
    got = gateway.ask("/v1/predict", {"model": "embed"}, x_model_version="1.0")
    assert got.status_code == 200
    assert server.seen[0][0] == "/predictions/embed/1.0"
    assert "of embed" in gateway.ask("/v1/predict", {"model": "embed"}, x_model_version="2.0").json()["detail"]


@pytest.mark.parametrize("behaviour", [hangs, fails(500)], ids=["hung", "dead"])
def test_a_bad_shadow_is_not_noticed(server: Standin, gateway: TestGateway, behaviour: object) -> None:
    gateway.set(split={"1.0": 100}, shadow={"2.0": 100})
    server.behave["2.0"] = behaviour  # type: ignore[assignment]  # parametrize knows no better type
    slowest = max(gateway.ask().elapsed.total_seconds() for _ in range(50))
    assert slowest < 1
    server.release.set()


def test_a_client_cannot_choose_inner_routes(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    assert gateway.ask(x_shadow_version="3.0").headers["x-model-version"] == "1.0"
    assert "3.0" not in server.versions_seen()


def test_a_client_cannot_choose_how_its_request_goes_on(server: Standin, gateway: TestGateway) -> None:
    """Neither past the lookup, nor to Envoy's own pages, nor to another version's figures."""
    gateway.set(split={"1.0": 100})
    orders = {
        "route": "pinned",
        "cluster": "admin",
        "model": "embed",
        "version": "9.9",
        "copy": "admin",
        "copies": "3.0",
    }
    for path in ("/predict", "/predictions/mcqa", "/feedback", "/elsewhere"):
        got = gateway.ask(path, **{f"x_gateway_{name}": value for name, value in orders.items()})
        assert got.status_code == (404 if path == "/elsewhere" else 200)
    assert [path for path, _, _ in server.seen] == ["/predictions/mcqa/1.0"] * 2 + ["/predictions/mcqa/1.0/feedback"]
    assert {headers["x-gateway-version"] for _, headers, _ in server.seen} == {"1.0"}
    assert not {"x-gateway-route", "x-gateway-cluster"} & server.seen[0][1].keys()


def test_a_client_cannot_pass_for_a_copy_or_a_fallback(server: Standin, gateway: TestGateway) -> None:
    """The prediction log believes these headers."""
    gateway.set(split={"1.0": 100})
    assert gateway.ask(x_shadow_version="1.0", x_fallback_from="2.0", x_sample="1").status_code == 200
    [(_, headers, _)] = server.seen
    assert not {"x-shadow-version", "x-fallback-from", "x-sample"} & headers.keys()


def test_labels_are_neither_copied_nor_counted_as_predictions(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 20, "2.0": 80}, shadow={"3.0": 100}, fallback=["1.0"])
    for _ in range(10):
        assert gateway.ask("/feedback").status_code == 200
    assert [path for path, _, _ in server.seen] == ["/predictions/mcqa/2.0/feedback"] * 10


def test_a_client_cannot_give_envoy_orders(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100})
    server.behave["1.0"] = waits
    orders = {"x_envoy_upstream_rq_timeout_ms": "1", "x_envoy_upstream_rq_per_try_timeout_ms": "1"}
    assert gateway.ask(**orders).status_code == 200


def test_a_version_is_pinned_by_header_or_path_and_a_wrong_one_is_named(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100})
    assert gateway.ask(x_model_version="2.0").headers["x-model-version"] == "2.0"
    assert gateway.ask("/predictions/mcqa/3.0").headers["x-model-version"] == "3.0"
    assert server.versions_seen() == ["2.0", "3.0"]
    for got in (gateway.ask(x_model_version="9.9"), gateway.ask("/predictions/mcqa/9.9")):
        assert (got.status_code, got.json()["error"]) == (404, "no_such_version")
        assert "1.0, 2.0, 3.0" in got.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "reached"),
    [
        ("/predict", {}, "/predictions/mcqa/1.0"),
        ("/v1/predict", {"model": "mcqa", "features": {}}, "/predictions/mcqa/1.0"),
        ("/v1/predict", {"model": "embed"}, "/predictions/embed/1.0"),
        ("/predictions/embed", {}, "/predictions/embed/1.0"),
        ("/v1/models/mcqa:predict", {"instances": []}, "/predictions/mcqa/1.0"),
        ("/v1/models/mcqa:explain", {}, "/explanations/mcqa/1.0"),
        ("/explain", {}, "/explanations/mcqa/1.0"),
        ("/explanations/mcqa", {}, "/explanations/mcqa/1.0"),
        ("/explanations/mcqa/2.0", {}, "/explanations/mcqa/2.0"),
        ("/embed", {"input_text": "x"}, "/predictions/embed/1.0"),
        ("/feedback", {"prediction_id": "a", "label": 1}, "/predictions/mcqa/1.0/feedback"),
        ("/feedback", {"model": "embed"}, "/predictions/embed/1.0/feedback"),
    ],
)
def test_every_path_leads_to_its_model(
    server: Standin, gateway: TestGateway, path: str, body: dict[str, object], reached: str
) -> None:
    gateway.set(split={"1.0": 100})
    assert gateway.ask(path, body or {"a": 1}).status_code == 200
    assert [seen for seen, _, _ in server.seen] == [reached]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/predict", {"model": "nobody"}, "no_such_model"),
        ("/feedback", {"model": "nobody"}, "no_such_model"),
        ("/predictions/nobody", {}, "no_such_model"),
        ("/v1/models/nobody:predict", {}, "no_such_model"),
        ("/elsewhere", {}, "no_such_path"),
        ("/predictions/mcqa%2f1.0", {}, "bad_request"),
    ],
)
def test_what_is_not_there_is_said_in_the_one_form(
    gateway: TestGateway, path: str, body: dict[str, object], error: str
) -> None:
    got = gateway.ask(path, body)
    assert got.json()["error"] == error
    assert set(got.json()) == {"error", "detail"}
    assert got.headers["content-type"] == "application/json"


def test_a_body_that_is_no_json_still_reaches_the_main_model(server: Standin, gateway: TestGateway) -> None:
    """Which says what is wrong with it."""
    gateway.set(split={"1.0": 100})
    for body in (b"{broken", b"", b"\xff\xfe", b"[1]", b'{"model": 7}'):
        assert requests.post(f"{gateway.url}/predict", data=body, timeout=20).status_code == 200
    assert server.versions_seen() == ["1.0"] * 5


def test_what_envoy_refuses_changes_nothing(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100})
    too_long = "x" * LONGEST_ANSWER_BYTES
    served = {**gateway.served, too_long: ["1.0"]}
    policies = {**gateway.policies, too_long: gateway.policies["mcqa"]}
    with pytest.raises(GatewayFailed, match=r"did not take .*\.json; the former one is back"):
        gateway.envoy.apply(served, policies)
    assert gateway.ask().status_code == 200
    gateway.set(split={"2.0": 100})
    assert gateway.ask().headers["x-model-version"] == "2.0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGateway]:
    settings = GatewaySettings(
        body_bytes=1000, request_timeout_s=0.9, rate_limit=RateLimit(5), api_keys={"alice": "a-key", "bob": "b-key"}
    )
    with gateway_with_server(tmp_path_factory.mktemp("guarded"), settings, split={"1.0": 100}) as (_, opened):
        yield opened


def test_only_a_known_key_opens(guarded: TestGateway) -> None:
    for headers in ({}, {"x_api_key": "wrong"}):
        got = guarded.ask(**headers)
        assert (got.status_code, got.json()["error"]) == (401, "no_api_key")
    assert guarded.ask(x_api_key="a-key").status_code == 200


def test_a_probe_needs_no_key_and_has_no_limit(guarded: TestGateway) -> None:
    codes = {requests.get(f"{guarded.url}/healthz", timeout=20).status_code for _ in range(20)}
    assert codes == {200}
    assert requests.get(f"{guarded.url}/ready", timeout=20).json()["status"] == "not ready"
    assert requests.get(f"{guarded.url}/metrics", timeout=20).status_code == 401


def test_a_client_over_its_rate_is_told_so_and_harms_no_other(guarded: TestGateway) -> None:
    codes = [guarded.ask(x_api_key="a-key") for _ in range(20)]
    refused = [got for got in codes if got.status_code == 429]
    assert len(refused) >= 10
    assert refused[0].json()["error"] == "too_many_requests"
    assert refused[0].headers["retry-after"] == "1"
    assert guarded.ask(x_api_key="b-key").status_code == 200


def test_a_client_is_charged_for_the_bytes_that_it_sends(tmp_path: Path) -> None:
    """Chunked bodies, too, which come without a length. Another client is not held up."""
    server = Standin()
    limit = RateLimit(1000, kilobytes_per_s=4)
    settings = GatewaySettings(body_bytes=4096, rate_limit=limit, api_keys={"alice": "a-key", "bob": "b-key"})
    opened = open_gateway(tmp_path, server.url, settings, split={"1.0": 100})
    try:
        body = json.dumps({"question": "x" * 1000}).encode()

        def codes(data: Any) -> list[int]:
            headers = {"x-api-key": "a-key"}
            url = f"{opened.url}/predictions/mcqa"
            return [requests.post(url, data=data(), headers=headers, timeout=20).status_code for _ in range(8)]

        assert codes(lambda: body).count(429) >= 3
        time.sleep(1.5)
        assert codes(lambda: iter([body[:500], body[500:]])).count(429) >= 3
        assert opened.ask(x_api_key="b-key").status_code == 200
        assert requests.get(f"{opened.url}/healthz", timeout=20).status_code == 200
    finally:
        opened.stop()
        server.shutdown()


def test_a_large_body_is_a_413(guarded: TestGateway) -> None:
    time.sleep(1)
    got = guarded.ask(x_api_key="b-key", body={"question": "x" * 2000})
    assert (got.status_code, got.json()["error"]) == (413, "too_large")


def test_more_than_the_limits_at_once_is_refused_and_not_queued(tmp_path: Path) -> None:
    server = Standin()
    server.behave["1.0"] = hangs
    settings = GatewaySettings(connections=4, requests_per_version=2)
    opened = open_gateway(tmp_path, server.url, settings, split={"1.0": 100})
    try:
        with ThreadPoolExecutor(2) as clients:
            waiting = [clients.submit(opened.ask) for _ in range(2)]
            until(lambda: len(server.seen) == 2)
            refused = opened.ask()
            assert (refused.status_code, refused.json()["error"]) == (503, "unavailable")
            assert refused.headers["retry-after"] == "1"
            held = [socket.create_connection(address_of(opened)) for _ in range(2)]
            with socket.create_connection(address_of(opened), timeout=10) as one_too_many:
                assert one_too_many.recv(1) == b""
            server.release.set()
            assert [got.result().status_code for got in waiting] == [200, 200]
        for connection in held:
            connection.close()
    finally:
        opened.stop()
        server.shutdown()


def address_of(gateway: TestGateway) -> tuple[str, int]:
    host, port = gateway.url.removeprefix("http://").split(":")
    return host, int(port)


def test_tls_is_a_matter_of_configuration(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    server = Standin()
    settings = GatewaySettings(tls=Tls(*files))
    opened = open_gateway(tmp_path / "state", server.url, settings, split={"1.0": 100})
    try:
        assert opened.url.startswith("https://")
        assert requests.post(f"{opened.url}/predict", json={}, verify=files[0], timeout=20).status_code == 200
    finally:
        opened.stop()
        server.shutdown()


def test_several_servers_share_the_work_and_a_dead_one_costs_nothing(tmp_path: Path) -> None:
    servers = [Standin(), Standin()]
    settings = GatewaySettings(upstreams=[servers[1].url.removeprefix("http://")])
    opened = open_gateway(tmp_path, servers[0].url, settings, split={"1.0": 100})
    try:
        assert {opened.ask().status_code for _ in range(30)} == {200}
        assert all(len(server.seen) > 5 for server in servers)
        servers[1].shutdown()
        servers[1].server_close()
        assert {opened.ask().status_code for _ in range(200)} == {200}
    finally:
        opened.stop()
        servers[0].shutdown()


def test_where_the_own_server_has_no_worker_another_one_is_asked(tmp_path: Path) -> None:
    servers = [Standin(), Standin()]
    settings = GatewaySettings(upstreams=[servers[1].url.removeprefix("http://")])
    opened = open_gateway(tmp_path, servers[0].url, settings, split={"2.0": 100}, fallback=["1.0"])
    try:
        health = opened.watcher(tmp_path)
        opened.look(health, "2.0")
        until(lambda: "2.0" in (health.files / WITHOUT_WORKERS).read_text())

        def is_asked_elsewhere() -> bool:
            for server in servers:
                server.forget()
            opened.ask("/predictions/mcqa/2.0")
            return [server.versions_seen() for server in servers] == [[], ["2.0"]]

        until(is_asked_elsewhere)
        for server in servers:
            server.forget()
        paths = ("/predict", "/predictions/mcqa/2.0")
        got = [opened.ask(path) for path in paths for _ in range(10)]
        assert {(answer.status_code, answer.headers["x-model-version"]) for answer in got} == {(200, "2.0")}
        assert [server.versions_seen() for server in servers] == [[], ["2.0"] * 20]
        opened.look(health)
        until(lambda: opened.ask("/predictions/mcqa/2.0").ok and bool(servers[0].seen))
    finally:
        opened.stop()
        for server in servers:
            server.shutdown()


def test_hundreds_of_models_are_served_as_one_is_and_a_change_touches_one_file(tmp_path: Path) -> None:
    """A file per version took Envoy more watches than Linux gives a user: it ended at its start with 80 versions."""
    server = Standin()
    opened = open_gateway(tmp_path, server.url)
    try:
        opened.served = {**SERVED, **{f"model-{number:03}": ["1.0", "2.0"] for number in range(300)}}
        opened.set(split={"1.0": 100})
        for path in ("/predictions/model-299", "/v2/models/model-000/infer", "/v1/models/model-150:predict"):
            assert opened.ask(path).status_code == 200
        assert opened.ask("/v1/predict", {"model": "model-299"}).status_code == 200
        assert "and 282 more, see /v1/models" in opened.ask("/predictions/nobody").json()["detail"]
        assert len(requests.get(f"{opened.url}/v1/models", timeout=20).json()["models"]) == 302
        before = {path: path.stat().st_ino for path in opened.envoy.folder.glob("*.json")}
        opened.set(split={"2.0": 100})
        assert opened.ask().headers["x-model-version"] == "2.0"
        assert [path.name for path, inode in before.items() if path.stat().st_ino != inode] == ["traffic.json"]
    finally:
        opened.stop()
        server.shutdown()
