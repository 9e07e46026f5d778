"""Who is counted for what, read from a real Envoy before a stand-in that fails in every way there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from marctl.gateway.counts import Failure
from marctl.gateway.names import Role
from marctl.gateway.settings import GatewaySettings
from tests.live.envoys import Reply, Standin, TestGateway, fails, hangs, open_gateway, refuses, until, waits

pytestmark = pytest.mark.live
FALLBACK = {"split": {"2.0": 100}, "fallback": ["1.0"]}


@pytest.fixture
def server() -> Iterator[Standin]:
    opened = Standin()
    yield opened
    opened.release.set()
    opened.shutdown()


@pytest.fixture
def gateway(server: Standin, tmp_path: Path) -> Iterator[TestGateway]:
    opened = open_gateway(tmp_path, server.url, GatewaySettings(requests_per_version=4))
    yield opened
    opened.stop()


def breaks(_: Standin) -> Reply:
    raise ConnectionAbortedError


def test_a_versions_failures_are_its_own_though_the_fallback_answered(server: Standin, gateway: TestGateway) -> None:
    """They were counted as its successes."""
    gateway.set(**FALLBACK)
    server.behave["2.0"] = fails(503)
    for _ in range(10):
        assert gateway.ask().headers["x-fallback"] == "1.0"
    split, fallback = gateway.attempts("2.0", Role.SPLIT), gateway.attempts("1.0", Role.FALLBACK)
    assert (split.total, split.failed, split.codes, split.failures) == (10, 10, {503: 10}, {Failure.ERROR: 10})
    assert (fallback.total, fallback.failed, fallback.codes) == (10, 0, {200: 10})
    assert gateway.attempts("1.0", Role.SPLIT).total == 0


@pytest.mark.parametrize("fallback", [["1.0"], []], ids=["fallback", "alone"])
@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [(fails(500), Failure.ERROR), (fails(504), Failure.ERROR), (hangs, Failure.TIMEOUT), (breaks, Failure.RESET)],
)
def test_failures_are_told_apart(
    server: Standin,
    gateway: TestGateway,
    behaviour: Callable[[Standin], Reply],
    kind: Failure,
    fallback: list[str],
) -> None:
    gateway.set(split={"2.0": 100}, fallback=fallback, timeout_s=0.4)
    server.behave["2.0"] = behaviour
    for _ in range(3):
        gateway.ask()
    until(lambda: gateway.attempts("2.0", Role.SPLIT).failed == 3)
    counted = gateway.attempts("2.0", Role.SPLIT)
    assert (counted.total, counted.failures) == (3, {kind: 3})


def test_a_version_that_nobody_can_ask_has_refused(server: Standin, gateway: TestGateway, tmp_path: Path) -> None:
    """For want of a worker, or because too much is under way."""
    gateway.set(split={"2.0": 100})
    health = gateway.watcher(tmp_path)
    gateway.look(health, "2.0")
    until(lambda: gateway.ask().status_code == 503)
    before = gateway.attempts("2.0", Role.SPLIT).failures[Failure.REFUSED]
    assert before >= 1
    gateway.ask()
    gateway.look(health)
    until(lambda: gateway.ask().status_code == 200)
    server.behave["2.0"] = hangs
    with ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(gateway.ask) for _ in range(4)]
        until(lambda: server.versions_seen().count("2.0") >= 5)
        assert gateway.ask().status_code == 503
        server.release.set()
        assert {answer.result().status_code for answer in waiting} == {200}
    until(lambda: gateway.attempts("2.0", Role.SPLIT).failures[Failure.REFUSED] >= before + 2)
    counted = gateway.attempts("2.0", Role.SPLIT)
    assert set(counted.failures) == {Failure.REFUSED}


def test_a_server_that_is_not_there_has_refused(server: Standin, gateway: TestGateway) -> None:
    """Twice, for such a request is tried again."""
    gateway.set(split={"2.0": 100})
    server.shutdown()
    server.server_close()
    assert gateway.ask().status_code == 503
    until(lambda: gateway.attempts("2.0", Role.SPLIT).failures == {Failure.REFUSED: 2})


def test_each_role_is_counted_by_itself(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 100}, shadow={"2.0": 100})
    asks = {
        (Role.SPLIT, "1.0"): ["/predict", "/v1/models/mcqa:predict", "/v2/models/mcqa/infer"],
        (Role.PINNED, "1.0"): ["/predictions/mcqa/1.0", "/v2/models/mcqa/versions/1.0/infer"],
        (Role.PINNED, "3.0"): ["/predictions/mcqa/3.0"],
        (Role.EXPLAIN, "1.0"): ["/explain", "/explanations/mcqa/1.0"],
        (Role.OTHER, "1.0"): ["/feedback"],
    }
    for paths in asks.values():
        for path in paths:
            assert gateway.ask(path).status_code == 200
    assert gateway.ask(x_model_version="3.0").status_code == 200
    until(lambda: len(server.seen) == 13)
    expected = {key: len(paths) for key, paths in asks.items()} | {(Role.PINNED, "3.0"): 2, (Role.SHADOW, "2.0"): 3}
    until(lambda: gateway.attempts("2.0", Role.SHADOW).total == 3)
    found = {
        (role, version): total
        for role in Role
        for version in ("1.0", "2.0", "3.0")
        if (total := gateway.attempts(version, role).total)
    }
    assert found == expected


def test_metadata_are_no_predictions(server: Standin, gateway: TestGateway) -> None:
    gateway.set(**FALLBACK, shadow={"3.0": 100})
    for path in ("/v2/models/mcqa", "/v2/models/mcqa/versions/2.0"):
        requests.get(gateway.url + path, timeout=20)
    assert server.others == ["GET /predictions/mcqa/2.0"] * 2
    until(lambda: gateway.attempts("2.0", Role.OTHER).total == 2)
    assert {gateway.attempts(v, role).total for v in ("2.0", "3.0") for role in (Role.SPLIT, Role.SHADOW)} == {0}


def test_what_the_client_must_mend_is_no_failure(server: Standin, gateway: TestGateway) -> None:
    gateway.set(split={"2.0": 100})
    server.behave["2.0"] = refuses(422)
    gateway.ask()
    until(lambda: gateway.attempts("2.0", Role.SPLIT).total == 1)
    counted = gateway.attempts("2.0", Role.SPLIT)
    assert (counted.codes, counted.failed) == ({422: 1}, 0)


def test_latencies_are_those_of_the_version_itself(server: Standin, gateway: TestGateway) -> None:
    """Of its answers alone: neither failures, which are fast, nor the fallback's time are among them."""
    gateway.set(**FALLBACK)
    server.behave["2.0"] = waits
    for _ in range(5):
        gateway.ask()
    server.behave |= {"2.0": fails(503), "1.0": lambda standin: (time.sleep(0.4), waits(standin))[1]}
    for _ in range(3):
        gateway.ask()
    until(lambda: gateway.attempts("1.0", Role.FALLBACK).latencies.count == 3, timeout_s=20)
    split, fallback = (gateway.attempts(*who).latencies for who in (("2.0", Role.SPLIT), ("1.0", Role.FALLBACK)))
    assert split.count == 5
    assert 200 <= split.sum_ms / split.count < 500 <= fallback.sum_ms / fallback.count
    assert 150 <= split.quantile_ms(0.5) <= 500 <= fallback.quantile_ms(0.99)


def test_a_client_can_make_no_figures(server: Standin, gateway: TestGateway) -> None:
    """Each name of its own would be a series that stays."""
    gateway.set(split={"1.0": 100})
    for name in ("9.9", "x" * 100):
        gateway.ask(x_model_version=name)
        gateway.ask(f"/predictions/{name}")
        gateway.ask("/predict", x_user_id=name)
        gateway.ask("/feedback", x_model_version=name)
    page = gateway.admin_page("/stats/prometheus?usedonly")
    assert 'version="9.9"' not in page
    assert "x" * 100 not in page


def test_versions_with_names_alike_have_figures_of_their_own(server: Standin, tmp_path: Path) -> None:
    opened = open_gateway(tmp_path, server.url)
    try:
        opened.served = {"mcqa": ["1.0", "1_0", "1"]}
        opened.set(split={"1.0": 1})
        for version, times in (("1.0", 1), ("1_0", 2), ("1", 3)):
            for _ in range(times):
                assert opened.ask(f"/predictions/mcqa/{version}").status_code == 200
        assert [opened.attempts(v, Role.PINNED).total for v in ("1.0", "1_0", "1")] == [1, 2, 3]
    finally:
        opened.stop()
