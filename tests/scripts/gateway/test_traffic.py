"""The policies' file and its history; bringing them into force is proved in tests/live."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.gateway.policies import Traffic, place
from scripts.gateway.traffic import history, keep_possible, read_policies, save
from scripts.stack.state import DamagedState, State


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State(tmp_path / "state")
    found.create()
    return found


HALF = Traffic(split={"1.0": 1, "2.0": 1})


def test_documents_are_kept_and_every_change_is_told(state: State) -> None:
    assert (read_policies(state), history(state, None)) == ({}, [])
    save(state, {"mcqa": HALF}, "route split")
    save(state, {"mcqa": HALF, "embed": HALF}, "route set")
    save(state, {"embed": HALF}, "route split")
    assert read_policies(state) == {"embed": HALF}
    steps = history(state, "mcqa")
    assert [(step["command"], step["before"] is None, step["after"] is None) for step in steps] == [
        ("route split", True, False),
        ("route split", False, True),
    ]
    assert len(history(state, None)) == 3


def test_what_changes_nothing_is_not_told(state: State) -> None:
    save(state, {"mcqa": HALF}, "route split")
    save(state, {"mcqa": HALF}, "route split")
    assert len(history(state, None)) == 1


def test_a_damaged_file_is_named(state: State) -> None:
    state.traffic.write_text("mcqa: {split: 7}\n")
    with pytest.raises(DamagedState, match=r"traffic\.yaml"):
        read_policies(state)


def test_a_start_leaves_out_what_is_no_longer_served_and_says_so(state: State) -> None:
    save(state, {"mcqa": Traffic(split={"1.0": 1, "2.0": 1}, fallback=["0.9"]), "gone": HALF}, "route set")
    said: list[str] = []
    assert keep_possible(state, {"mcqa": {"1.0"}}, said.append) == {"mcqa": Traffic(split={"1.0": 1})}
    assert [line.split(" has ")[0] for line in said] == [
        "warning: mcqa 0.9",
        "warning: mcqa 2.0",
        "warning: gone 1.0",
        "warning: gone 2.0",
    ]
    assert read_policies(state) == {"mcqa": Traffic(split={"1.0": 1})}


def test_a_versions_place_is_told_in_words() -> None:
    policy = Traffic(split={"1": 5}, shadow={"2": 1}, fallback=["1"])
    assert place(policy, "1") == "weight 5 and a fallback of the fallback list"
    assert place(policy, "2") == "a shadow's copies"
