"""Who gets which version, asked of a real Envoy thousands of times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest

from loadtest.gateway.constant import constant_server
from tests.live.envoys import TestGateway, open_gateway, versions_of

pytestmark = pytest.mark.live
MANY = [f"user-{i}" for i in range(10_000)]
USERS = MANY[:2000]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGateway]:
    folder = tmp_path_factory.mktemp("split")
    with constant_server(folder) as upstream:
        opened = open_gateway(folder / "state", upstream)
        yield opened
        opened.stop()


def sides(gateway: TestGateway, **fields: object) -> dict[str, str]:
    gateway.set(**fields)
    return ask_all(gateway)


def ask_all(gateway: TestGateway) -> dict[str, str]:
    return dict(zip(USERS, versions_of(gateway.url, USERS), strict=True))


def assert_share(found: list[str], version: str, share: float) -> None:
    """Within four standard deviations of a fair draw: one such test in 16,000 fails by chance."""
    sigma = sqrt(len(found) * share * (1 - share))
    assert abs(found.count(version) - len(found) * share) < 4 * sigma, Counter(found)


def test_ten_thousand_users_are_split_as_the_weights_say(gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 80, "2.0": 20})
    assert_share(versions_of(gateway.url, MANY), "2.0", 0.2)


def test_the_same_user_gets_the_same_version_even_after_a_restart(gateway: TestGateway, tmp_path: Path) -> None:
    first = sides(gateway, split={"1.0": 80, "2.0": 20})
    assert sides(gateway, split={"1.0": 80, "2.0": 20}) == first
    other = open_gateway(tmp_path, gateway.envoy.torchserve["inference"])
    try:
        assert ask_all(other) == first
    finally:
        other.stop()


def test_a_ramp_keeps_those_who_are_in(gateway: TestGateway) -> None:
    before: set[str] = set()
    for percent in (5, 20, 50):
        found = sides(gateway, split={"1.0": 100 - percent, "2.0": percent}, experiment="ramp")
        inside = {user for user, version in found.items() if version == "2.0"}
        assert before <= inside
        assert_share(list(found.values()), "2.0", percent / 100)
        before = inside


def test_a_third_version_takes_its_users_and_keeps_them(gateway: TestGateway) -> None:
    found = sides(gateway, split={"3.0": 10, "1.0": 60, "2.0": 30})
    more = sides(gateway, split={"1.0": 50, "2.0": 20, "3.0": 30})
    for version, share in (("1.0", 0.6), ("2.0", 0.3), ("3.0", 0.1)):
        assert_share(list(found.values()), version, share)
    assert all(more[user] == "3.0" for user, version in found.items() if version == "3.0")


def test_a_new_experiment_deals_all_users_anew(gateway: TestGateway) -> None:
    """Independent draws agree on 0.8 * 0.8 + 0.2 * 0.2 of the users."""
    first = sides(gateway, split={"1.0": 80, "2.0": 20}, experiment="a")
    second = sides(gateway, split={"1.0": 80, "2.0": 20}, experiment="b")
    assert_share(["same" if first[user] == second[user] else "other" for user in USERS], "same", 0.68)
    assert_share(list(second.values()), "2.0", 0.2)


def test_the_documented_hash_decides(gateway: TestGateway) -> None:
    """So that an experiment's users can be told without asking the gateway."""
    found = sides(gateway, split={"1.0": 80, "2.0": 20}, experiment="choices-v2")
    assert found == {user: "2.0" if place(f"choices-v2/{user}") < 2000 else "1.0" for user in USERS}


def place(text: str) -> int:
    """FNV-1a (32 bits), MurmurHash3's finalizer, modulo 10,000."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = (value ^ value >> shift) * factor % 2**32
    return (value ^ value >> 16) % 10_000


def test_the_sticky_header_can_be_chosen(gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 50, "2.0": 50}, sticky="x-session")
    users = USERS[:1000]
    assert versions_of(gateway.url, users, "x-session") == versions_of(gateway.url, users, "x-session")
    assert len(set(versions_of(gateway.url, ["one"] * 100))) == 2


def test_without_the_header_each_request_is_drawn_by_itself(gateway: TestGateway) -> None:
    gateway.set(split={"1.0": 80, "2.0": 20})
    found = versions_of(gateway.url, USERS, "x-other")
    assert_share(found, "2.0", 0.2)
    assert found != versions_of(gateway.url, USERS, "x-other")
