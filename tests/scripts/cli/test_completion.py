"""In a real bash; of zsh and fish, which need not be installed, what their scripts ask and are answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from marctl.cli import main
from marctl.cli.completion import SHELLS

PROGRAM = '#!/bin/sh\nexec {python} -c \'from marctl.cli import main; main(prog_name="marctl")\' "$@"\n'


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """With `marctl` in PATH, as these tests run it."""
    program = tmp_path / "bin" / "marctl"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def completed(environ: dict[str, str], *words: str) -> list[str]:
    """What bash proposes for the last word."""
    script = 'eval "$(marctl completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _marctl_completion marctl'
    script += '; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", "marctl", *words], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_of_groups_and_options(environ: dict[str, str]) -> None:
    assert "build" in completed(environ, "")
    assert completed(environ, "route", "sp") == ["split"]
    assert completed(environ, "up", "--gateway-p") == ["--gateway-port"]
    assert completed(environ, "completion", "f") == ["fish"]


@pytest.mark.parametrize(
    ("variable", "words", "position", "answer"),
    [
        ("zsh_complete", "marctl route sp", "2", "plain\nsplit\n"),
        ("fish_complete", "marctl route sp", "sp", "plain,split\t"),
    ],
)
def test_zsh_and_fish_are_answered(
    environ: dict[str, str], variable: str, words: str, position: str, answer: str
) -> None:
    asked = environ | {"_MARCTL_COMPLETE": variable, "COMP_WORDS": words, "COMP_CWORD": position}
    done = subprocess.run(["marctl"], env=asked, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(answer)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shells_script_is_printed(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert (done.exit_code, f"_MARCTL_COMPLETE={shell}_complete" in done.output) == (0, True)
