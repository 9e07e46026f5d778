from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marctl.stack.rotation import rotate_in_place, rotating
from tests.live.envoys import until

WRITER = "import sys\nfor line in sys.stdin:\n    print(line, end='', flush=True)"


def test_a_process_goes_on_writing_into_a_log_that_was_rotated(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=output, text=True)
    assert process.stdin is not None

    def say(text: str) -> None:
        assert process.stdin is not None
        process.stdin.write(text + "\n")
        process.stdin.flush()
        until(lambda: log.read_text().endswith(text + "\n"))

    say("a" * 100)
    rotate_in_place(log, 1000)
    assert log.stat().st_size == 101, "it is small yet"
    rotate_in_place(log, 100)
    assert (log.stat().st_size, (tmp_path / "gateway.log.1").stat().st_size) == (0, 101)
    say("b")
    assert log.read_text() == "b\n"
    process.stdin.close()
    process.wait()


def test_a_log_that_cannot_be_copied_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    log.write_text("a" * 200)
    (tmp_path / "gateway.log.partial").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        rotate_in_place(log, 100)
    assert log.stat().st_size == 200


def test_large_logs_are_rotated_while_a_stack_runs(tmp_path: Path) -> None:
    large, small = tmp_path / "gateway.log", tmp_path / "redis.log"
    large.touch()
    os.truncate(large, 11 << 20)
    small.write_text("short")
    with rotating(tmp_path, every_s=0.02):
        until(lambda: large.stat().st_size == 0)
    assert (tmp_path / "gateway.log.1").stat().st_size == 11 << 20
    assert small.read_text() == "short"
