"""Who gets which version, asked of a real Envoy thousands of times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest

from tests.live.envoys import TestDoor, constant_server, open_door, versions_of

pytestmark = pytest.mark.live
MANY = [f"user-{i}" for i in range(10_000)]
USERS = MANY[:2000]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDoor]:
    folder = tmp_path_factory.mktemp("split")
    with constant_server(folder) as upstream:
        opened = open_door(folder / "state", upstream)
        yield opened
        opened.stop()


def sides(door: TestDoor, **fields: object) -> dict[str, str]:
    door.set(**fields)
    return ask_all(door)


def ask_all(door: TestDoor) -> dict[str, str]:
    return dict(zip(USERS, versions_of(door.url, USERS), strict=True))


def assert_share(found: list[str], version: str, share: float) -> None:
    """Within four standard deviations of a fair draw: one such test in 16,000 fails by chance."""
    sigma = sqrt(len(found) * share * (1 - share))
    assert abs(found.count(version) - len(found) * share) < 4 * sigma, Counter(found)


def test_ten_thousand_users_are_split_as_the_weights_say(door: TestDoor) -> None:
    door.set(split={"1.0": 80, "2.0": 20})
    assert_share(versions_of(door.url, MANY), "2.0", 0.2)


def test_the_same_user_gets_the_same_version_even_after_a_restart(door: TestDoor, tmp_path: Path) -> None:
    first = sides(door, split={"1.0": 80, "2.0": 20})
    assert sides(door, split={"1.0": 80, "2.0": 20}) == first
    other = open_door(tmp_path, door.running.inference)
    try:
        assert ask_all(other) == first
    finally:
        other.stop()


def test_a_ramp_keeps_those_who_are_in(door: TestDoor) -> None:
    before: set[str] = set()
    for percent in (5, 20, 50):
        found = sides(door, split={"1.0": 100 - percent, "2.0": percent}, experiment="ramp")
        inside = {user for user, version in found.items() if version == "2.0"}
        assert before <= inside
        assert_share(list(found.values()), "2.0", percent / 100)
        before = inside


def test_a_third_version_takes_its_users_and_keeps_them(door: TestDoor) -> None:
    found = sides(door, split={"3.0": 10, "1.0": 60, "2.0": 30})
    more = sides(door, split={"1.0": 50, "2.0": 20, "3.0": 30})
    for version, share in (("1.0", 0.6), ("2.0", 0.3), ("3.0", 0.1)):
        assert_share(list(found.values()), version, share)
    assert all(more[user] == "3.0" for user, version in found.items() if version == "3.0")


def test_a_new_experiment_deals_all_users_anew(door: TestDoor) -> None:
    """Independent draws agree on 0.8 * 0.8 + 0.2 * 0.2 of the users."""
    first = sides(door, split={"1.0": 80, "2.0": 20}, experiment="a")
    second = sides(door, split={"1.0": 80, "2.0": 20}, experiment="b")
    assert_share(["same" if first[user] == second[user] else "other" for user in USERS], "same", 0.68)
    assert_share(list(second.values()), "2.0", 0.2)


def test_the_sticky_header_can_be_chosen(door: TestDoor) -> None:
    door.set(split={"1.0": 50, "2.0": 50}, sticky="x-session")
    users = USERS[:1000]
    assert versions_of(door.url, users, "x-session") == versions_of(door.url, users, "x-session")
    assert len(set(versions_of(door.url, ["one"] * 100))) == 2


def test_without_the_header_each_request_is_drawn_by_itself(door: TestDoor) -> None:
    door.set(split={"1.0": 80, "2.0": 20})
    found = versions_of(door.url, USERS, "x-other")
    assert_share(found, "2.0", 0.2)
    assert found != versions_of(door.url, USERS, "x-other")
