"""The output folder: whole files, one owner, another job's results left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from marctl.batch.folder import BEAT_S, DEAD_BEATS, FolderBusy, folder_of
from marctl.batch.job import Job, JobChanged, Source, refuse_change
from marctl.batch.workspace import remove_leftovers, workspace
from marctl.core.files import WriteFailed
from tests.full_disk import fill, small_disk

HOLD = """
import sys, time
from marctl.batch.folder import folder_of
with folder_of(sys.argv[1]).claimed():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_owner_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FolderBusy, match=f"pid {holder.pid}"), folder_of(str(tmp_path)).claimed():
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with folder_of(str(tmp_path)).claimed():
        pass


def claim(host: str, pid: int, age_s: float) -> None:
    import time

    content = {"token": "t", "host": host, "pid": pid, "time": time.time() - age_s}
    fsspec.filesystem("memory").pipe("/claims/out/_job/lock", json.dumps(content).encode())


def test_a_remote_folder_is_held_by_whoever_says_so_now_and_then() -> None:
    folder = folder_of("memory://claims/out")
    claim("elsewhere", 1, BEAT_S)
    with pytest.raises(FolderBusy, match="elsewhere"), folder.claimed():
        pass
    claim("elsewhere", 1, BEAT_S * DEAD_BEATS + 1)
    with folder.claimed(), pytest.raises(FolderBusy), folder.claimed():
        pass
    assert folder.get("_job/lock") is None


def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        folder = folder_of(str(disk / "out"))
        folder.put("predictions/a", b"x" * 1000)
        ballast = fill(disk)
        with pytest.raises(WriteFailed, match="make room there"):
            folder.put("predictions/b", b"x" * 100_000)
        assert folder.names("predictions") == ["a"]
        ballast.unlink()
        folder.put("predictions/b", b"x" * 100_000)


SOURCE = Source("/in.csv", "/in.csv", ".csv", 10, "a" * 64, 3, {"n": "double"})
JOB = Job(model="m", version="1.0", digest="b" * 64, sources=(SOURCE,), unit_rows=512)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"digest": "c" * 64}, "archive: sha256 was bbbbbbbbbbbb, is cccccccccccc"),
        ({"mapping": {"value": "n"}}, '--map: was not given, is {"value":"n"}'),
        ({"limit": 5}, "--limit: was not given, is 5"),
        ({"version": "2.0"}, 'version: was "1.0", is "2.0"'),
        ({"sources": ()}, "input /in.csv: is not there any more"),
        (
            {"sources": (Source("/in.csv", "/in.csv", ".csv", 12, "d" * 64, 4, {"n": "double"}),)},
            r"input /in.csv: its content changed \(10 bytes then, 12 now\)",
        ),
    ],
)
def test_a_changed_job_is_refused_with_what_changed_and_the_choice(changes: dict[str, object], words: str) -> None:
    import msgspec

    with pytest.raises(JobChanged, match=words) as raised:
        refuse_change("out", JOB, msgspec.structs.replace(JOB, **changes))
    assert "--restart" in str(raised.value)
    assert "another output folder" in str(raised.value)


def test_what_a_killed_run_left_in_the_temporary_folder_goes_with_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / "marctl-batch-left"
    left.mkdir()
    (left / "lock").touch()
    (left / "archive").mkdir()
    with workspace() as used:
        remove_leftovers(used.parent)
        assert used.is_dir()
        remove_leftovers(tmp_path)
    assert not left.exists()
    assert not used.exists()
