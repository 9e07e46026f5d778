from __future__ import annotations

from pathlib import Path

import pytest

from marctl.core.errors import UserError
from marctl.stack.backoff import Backoff
from marctl.stack.journal import Journal
from marctl.stack.report import Answer
from marctl.stack.state import State
from tests.full_disk import fill, small_disk


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def journal(tmp_path: Path, said: list[str]) -> Journal:
    return Journal(State(tmp_path), said.append)


def test_a_trouble_is_told_once_and_its_end_too(journal: Journal, said: list[str], tmp_path: Path) -> None:
    for _ in range(3):
        journal.trouble("Redis", UserError("it died"))
    assert [c.what for c in State(tmp_path).status().conditions] == ["Redis"]
    assert journal.waits("Redis")
    journal.well("Redis", "Envoy")
    assert said == ["warning: Redis: it died", "Redis is well again"]
    assert State(tmp_path).status().conditions == []
    assert [note.number for note in State(tmp_path).status().notes] == [1, 2]


def test_an_answer_is_given_when_its_revision_or_the_former_one_is_in_force(journal: Journal, tmp_path: Path) -> None:
    state = State(tmp_path)
    journal.in_force_now(1, asked=True)
    journal.taken_back(2, Answer("taken back", "why", "load_failed"), "taken back")
    journal.note("on the way")
    assert state.status().answer(2) is None
    journal.in_force_now(3, asked=False)
    assert state.status().answer(2) == Answer("taken back", "why", "load_failed")
    assert (state.status().observed, state.status().in_force) == (3, 3)


def test_it_goes_on_from_what_a_killed_one_had_reached(journal: Journal, tmp_path: Path) -> None:
    journal.in_force_now(4, asked=True)
    journal.trouble("Envoy", UserError("x"))
    again = Journal(State(tmp_path), lambda _: None)
    assert (again.in_force, again.observed) == (4, 4)
    again.note("here")
    assert State(tmp_path).status().conditions == []


def test_a_damaged_report_is_told_and_begun_anew(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "status.json").write_text("{")
    assert Journal(State(tmp_path), said.append).in_force == 0
    assert "status.json" in said[0]


def test_a_full_disk_ends_nothing_and_the_news_are_written_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        journal = Journal(State(disk), lambda _: None)
        journal.in_force_now(1, asked=True)
        ballast = fill(disk)
        for i in range(200):
            journal.note(f"{i} " + "x" * 100)
        ballast.unlink()
        journal.flush()
        assert State(disk).status().notes[-1].text.startswith("199 ")


def test_a_first_try_is_at_once_and_later_ones_wait_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("marctl.stack.backoff.time.monotonic", lambda: clock[0])
    backoff, tries = Backoff(1.0, 8.0), []
    while clock[0] < 130:
        if backoff.due:
            backoff.tried()
            tries.append(clock[0] - 100)
        clock[0] += 0.5
    assert tries == [0, 1, 3, 7, 15, 23]
    clock[0] += 100
    backoff.tried()
    clock[0] += 1
    assert backoff.due
