from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from marctl.cli import COMMANDS, main
from marctl.core.process import Identity
from marctl.stack.ports import Ports
from marctl.stack.servers import Request
from marctl.stack.state import Running, State

NAMES = [name for commands in COMMANDS.values() for name in commands]
HEAVY = {"torch", "transformers", "requests", "rich.table", "psutil", "msgspec", "yaml"}
STACK_COMMANDS = [
    "up",
    "down",
    "drain",
    "status",
    "doctor",
    "check",
    "register",
    "scale",
    "default",
    "unregister",
    "rollback",
    "ask",
    "batch",
    "logs",
    "autoscale",
]
STATELESS = ["state draft", "keys new"]
"""No stack is theirs."""


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from marctl.cli import main; main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(eval(done.stdout.splitlines()[-1]))


def whole_names() -> list[str]:
    """`build`, `route split`: every command, those of groups by both words."""
    found = []
    for name in NAMES:
        command = main.get_command(click.Context(main), name)
        found += [f"{name} {sub}" for sub in command.commands] if isinstance(command, click.Group) else [name]
    return found


@pytest.mark.parametrize("name", whole_names())
def test_every_command_has_an_example_and_the_common_options(name: str) -> None:
    shown = CliRunner().invoke(main, [*name.split(), "--help"]).output
    assert f"Example: marctl {name}" in " ".join(shown.split())
    assert "--json" in shown
    assert ("--state" in shown) == (name in STACK_COMMANDS or (" " in name and name not in STATELESS))


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_command_exists(name: str) -> None:
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_what_does_not_run_cannot_be_drained(tmp_path: Path) -> None:
    for words in (["drain"], ["drain", "--undo"]):
        done = CliRunner().invoke(main, [*words, "--state", str(tmp_path)])
        assert (done.exit_code, "nothing runs" in done.output) == (1, True)


def test_settings_are_read_by_the_name_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted Secret is a link that is swapped; where it points to now is soon gone."""
    (tmp_path / "..0").mkdir()
    (tmp_path / "..0" / "gateway.yaml").touch()
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "gateway.yaml").symlink_to("..data/gateway.yaml")
    asked: list[Request] = []
    monkeypatch.setattr("marctl.stack.up.serve", lambda _, request, *__: asked.append(request))
    link = str(tmp_path / "gateway.yaml")
    words = ["up", "--state", str(tmp_path / "state"), "--gateway-config", link]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert asked[0].gateway_config == link


def test_misuse_is_exit_code_2() -> None:
    assert CliRunner().invoke(main, ["scale", "mcqa"]).exit_code == 2
    assert CliRunner().invoke(main, ["no-such-command"]).exit_code == 2


def test_a_failure_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == f"error: nothing runs in {tmp_path}; start it with `marctl up`\n"


def test_with_json_a_failure_is_also_one_line_of_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status", "--json", "--state", str(tmp_path)])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        "error": "not_running",
        "detail": f"nothing runs in {tmp_path}; start it with `marctl up`",
    }


def test_an_interrupt_is_exit_code_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: State) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(State, "running", interrupt)
    done = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_down_with_nothing_running_is_no_failure(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["down", "--json", "--state", str(tmp_path)])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"stopped": False})


def test_down_cleans_up_what_a_dead_server_left_and_ends_no_stranger(tmp_path: Path) -> None:
    """The recorded pid is this very test's: alive, but not the server."""
    temp = tmp_path / "tmp"
    temp.mkdir()
    state = State(tmp_path)
    server = Identity(os.getpid(), 1, "another boot")
    state.save_running(Running(Ports(*range(1, 10)), "http://x:1", "", "", "", str(temp), "2026-01-01", server))
    done = CliRunner().invoke(main, ["down", "--state", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, f"nothing runs in {tmp_path}\n")
    assert not temp.exists()
    assert state.running() is None


@pytest.mark.parametrize("name", ["running.json", "status.json", "reconciler.lock", "gateway/settings.json"])
def test_down_needs_no_file_to_be_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{damaged")
    done = CliRunner().invoke(main, ["down", "--state", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, f"nothing runs in {tmp_path}\n")


@pytest.mark.parametrize("name", ["show", "set", "split", "shadow", "fallback", "history"])
def test_every_route_command_has_an_example_and_the_common_options(name: str) -> None:
    shown = CliRunner().invoke(main, ["route", name, "--help"]).output
    assert f"Example: marctl route {name}" in " ".join(shown.split())
    assert "--json" in shown
    assert "--state" in shown


@pytest.mark.parametrize(
    "arguments", [["mcqa"], ["mcqa", "2.0"], ["mcqa", "=5"], ["mcqa", "2.0=much"], ["mcqa", "2.0=1", "--default"]]
)
def test_a_split_without_sense_is_misuse(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["route", "split", *arguments]).exit_code == 2


def test_the_traffic_of_nothing_is_no_traffic(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["route", "show", "mcqa", "--state", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (1, "error: no model mcqa is served; there are: none\n")


def test_help_lists_every_command_once_below_its_section_with_a_whole_sentence() -> None:
    lines = CliRunner().invoke(main, ["--help"], terminal_width=112).output.splitlines()
    for title, commands in COMMANDS.items():
        shown = lines[lines.index(f"{title}:") + 1 :][: len(commands)]
        assert [line.split()[0] for line in shown] == list(commands)
        assert all(line.endswith(".") and "..." not in line for line in shown), shown
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rote", "route"), ("stop", "down"), ("START", "up"), ("route sho", "show"), ("history verfy", "verify")],
)
def test_a_mistyped_or_foreign_command_is_answered_with_the_one_that_is_meant(typed: str, meant: str) -> None:
    done = CliRunner().invoke(main, typed.split())
    assert done.exit_code == 2
    assert "Did you mean" in done.stderr
    assert f"'{meant}'" in done.stderr


def test_a_word_like_no_command_gets_no_guess() -> None:
    done = CliRunner().invoke(main, ["xyzzy"])
    assert done.stderr.splitlines()[-1] == "Error: No such command 'xyzzy'."
