"""A version that ends its process is found out, and nobody else is blamed for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from marctl_handlers.shared.blame import MOST_DEATHS, Blame, blamed_in
from tests.handlers.shared.members import a_host, ask, write_member

A, B = "a" * 64, "b" * 64
DIE = """
import os, sys
from pathlib import Path
from marctl_handlers.shared.blame import Blame
blame = Blame(Path(sys.argv[1]))
with blame.{at}({who!r}):
    os._exit(1)
"""


def die(folder: Path, at: str, who: str) -> None:
    """A worker that ends while a version is at work."""
    done = subprocess.run([sys.executable, "-c", DIE.format(at=at, who=who), str(folder)], check=False)
    assert done.returncode == 1


def test_a_version_that_ends_workers_again_and_again_is_left_alone(tmp_path: Path) -> None:
    for times in range(MOST_DEATHS):
        assert not Blame(tmp_path).suspect(A), times
        die(tmp_path, "loading" if times % 2 else "answering", A)
    blame = Blame(tmp_path)
    assert blame.suspect(A)
    assert not blame.suspect(B)


def test_a_worker_that_ends_idle_is_nobody_s_fault(tmp_path: Path) -> None:
    for _ in range(MOST_DEATHS + 1):
        code = DIE.format(at="loading", who=A).replace("    os._exit", "    pass\nos._exit")
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 1
    assert not Blame(tmp_path).suspect(A)


def test_a_worker_that_lives_is_not_taken_for_dead(tmp_path: Path) -> None:
    with Blame(tmp_path).answering(A):
        die(tmp_path, "loading", B)
    assert not (tmp_path / "deaths").exists()


def test_what_was_being_loaded_is_blamed_before_what_answered() -> None:
    assert blamed_in(A.encode() + B.encode() + bytes(64)) == [B]
    assert blamed_in(A.encode() + bytes(128)) == [A]
    assert blamed_in(bytes(192)) == []


def test_a_suspect_is_refused_and_the_others_answer(tmp_path: Path) -> None:
    members = [write_member(tmp_path, name) for name in ("bad", "good")]
    (tmp_path / "worker").mkdir()
    for _ in range(MOST_DEATHS):
        die(tmp_path / "worker", "answering", members[0].archive)
    host = a_host(tmp_path, members)
    bad, good = ask(host, "bad/1.0", "good/1.0")
    assert (bad[0], good[0]) == (503, 200)
    assert "workers: 1" in bad[1]["detail"]
