from __future__ import annotations

from pathlib import Path

import pytest

from scripts.stack.state import Busy, Choices, DamagedState, Running, State


def some_running() -> Running:
    return Running(7, 1.5, "http://a", "http://b", "http://c", "/store", "/tmp/x", "2026-01-01T00:00:00+00:00")


def test_a_running_server_is_remembered_and_forgotten(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    assert state.running() is None
    state.save_running(some_running())
    assert State(tmp_path / "s").running() == some_running()
    state.forget_running()
    assert state.running() is None


def test_choices_persist(tmp_path: Path) -> None:
    with State(tmp_path).choosing() as choices:
        choices.defaults["mcqa"] = "2.0"
        choices.left_out.append("mcqa/1.0")
    assert State(tmp_path).choices() == Choices(defaults={"mcqa": "2.0"}, left_out=["mcqa/1.0"])


def test_choices_of_a_failed_command_are_not_kept(tmp_path: Path) -> None:
    state = State(tmp_path)
    with pytest.raises(ZeroDivisionError), state.choosing() as choices:
        choices.defaults["mcqa"] = str(1 / 0)
    assert state.choices() == Choices()


def test_fresh_choices_share_nothing() -> None:
    Choices().extra.append("a.mar")
    assert Choices().extra == []


def test_a_damaged_file_is_named_with_its_fault(tmp_path: Path) -> None:
    (tmp_path / "choices.json").write_text('{"defaults": [1]}')
    with pytest.raises(DamagedState, match=r"choices\.json: Expected `object`, got `array` - at `\$\.defaults`"):
        State(tmp_path).choices()


def test_two_commands_cannot_change_one_stack_at_once(tmp_path: Path) -> None:
    with State(tmp_path).locked(), pytest.raises(Busy, match="another marctl"), State(tmp_path).locked():
        pass
    with State(tmp_path).locked():
        pass


def test_the_folder_hides_itself_from_git(tmp_path: Path) -> None:
    State(tmp_path / "s").create()
    assert (tmp_path / "s" / ".gitignore").read_text() == "*\n"
