from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marctl.core.files import WriteFailed, made_folder, write_atomically
from tests.full_disk import small_disk

ENDLESS = """
import sys
from pathlib import Path
from marctl.core.files import write_atomically
print(flush=True)
while True:
    for letter in "ab":
        write_atomically(Path(sys.argv[1]), letter * 100_000)
"""


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.json"
    write_atomically(path, "one", mode=0o600)
    write_atomically(path, b"two", mode=0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o600)
    assert os.listdir(path.parent) == ["x.json"]


def test_a_full_disk_leaves_the_old_content_and_names_the_cure(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "x"
        write_atomically(path, b"old")
        with pytest.raises(WriteFailed, match=r"cannot write .*/x: No space left on device; make room"):
            write_atomically(path, bytes(2 << 20))
        assert path.read_bytes() == b"old"
        assert os.listdir(disk) == ["x"]
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"


def test_a_killed_writer_leaves_one_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not path.exists():
                pass
            writer.kill()
        assert path.read_text() in ("a" * 100_000, "b" * 100_000)


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made" / "model"
    with made_folder(target) as folder:
        (folder / "one").write_text("1")
        assert not target.exists()
    with made_folder(target) as folder:
        (folder / "two").write_text("2")
    with pytest.raises(ZeroDivisionError), made_folder(target) as folder:
        (folder / "three").write_text(str(1 / 0))
    assert os.listdir(target) == ["two"]
    assert os.listdir(target.parent) == ["model"]


def test_a_full_disk_leaves_no_part_of_a_folder(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(WriteFailed, match="make room"), made_folder(disk / "model") as folder:
            (folder / "weights").write_bytes(bytes(2 << 20))
        assert os.listdir(disk) == []


def test_what_a_killed_process_left_of_a_folder_is_undone(tmp_path: Path) -> None:
    """It was killed after the former content had been set aside; another process is still at work."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".model.{ended.pid}.partial", f".model.{ended.pid}.former", f".model.{os.getppid()}.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name.rpartition(".")[2]).write_text("x")
    with made_folder(tmp_path / "model") as folder:
        assert os.listdir(tmp_path / "model") == ["former"]
        (folder / "new").write_text("x")
    assert os.listdir(tmp_path / "model") == ["new"]
    assert sorted(os.listdir(tmp_path)) == [f".model.{os.getppid()}.partial", "model"]
