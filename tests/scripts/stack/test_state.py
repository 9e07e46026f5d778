from __future__ import annotations

from pathlib import Path

import pytest

from marctl.core.process import Identity
from marctl.gateway.settings import GatewaySettings
from marctl.stack.ports import Ports
from marctl.stack.report import Answer, Status
from marctl.stack.state import DamagedState, Gateway, Running, State

PORTS = Ports(*range(1, 10))


def some_running() -> Running:
    server = Identity(7, 8, "boot")
    return Running(
        PORTS, "http://a", "http://b", "http://c", "/store", "/tmp/x", "2026-01-01", server, Gateway("d", "e")
    )


def test_a_running_server_is_remembered_and_forgotten(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    assert state.running() is None
    state.save_running(some_running())
    assert State(tmp_path / "s").running() == some_running()
    state.forget_running()
    assert state.running() is None


def test_keys_stand_in_the_gateways_folder_alone_and_are_private(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.create()
    state.save_running(some_running())
    state.save_gateway_settings(GatewaySettings(api_keys={"ann": "secret-key"}))
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and b"secret-key" in path.read_bytes()]
    assert [path.parent.name for path in holding] == ["gateway"]
    assert [path.stat().st_mode & 0o077 for path in (*holding, holding[0].parent)] == [0, 0]
    assert State(tmp_path).gateway_settings().api_keys == {"ann": "secret-key"}


@pytest.mark.parametrize("content", ['{"ports": [1]}', "", "\x00" * 100, "[" * 5000, b"\xff\xfe"])
def test_a_damaged_file_is_named_with_advice_that_loses_nothing(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "running.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedState, match=r"running\.json: .*`marctl up` finds what runs by itself") as caught:
        State(tmp_path).running()
    assert "remove" not in str(caught.value)


def test_an_answer_is_given_once_the_revision_was_observed() -> None:
    status = Status(observed=5, answers={"5": Answer("taken back", "why", "load_failed")})
    assert status.answer(6) is None
    assert status.answer(5) == Answer("taken back", "why", "load_failed")
    assert status.answer(4) == Answer("in force")


def test_the_folder_hides_itself_from_git(tmp_path: Path) -> None:
    State(tmp_path / "s").create()
    assert (tmp_path / "s" / ".gitignore").read_text() == "*\n"
