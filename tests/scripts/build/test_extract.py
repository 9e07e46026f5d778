"""What is extracted is what was checked, and stays in its folder."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from marctl.build.extract import ArchiveChanged, extract
from marctl.build.reader import read_archive
from tests.tiny_archives import FAILS_TO_LOAD, tiny_archive


@pytest.mark.parametrize("how", ["renamed over", "written in place", "one byte"])
def test_an_archive_that_changed_after_it_was_checked_is_not_extracted(tmp_path: Path, how: str) -> None:
    archive = read_archive(tiny_archive(tmp_path))
    other = tiny_archive(tmp_path / "other", handler=FAILS_TO_LOAD)
    if how == "renamed over":
        os.replace(other, archive.path)
    elif how == "written in place":
        archive.path.write_bytes(other.read_bytes())
    else:
        content = bytearray(archive.path.read_bytes())
        content[100] ^= 1
        archive.path.write_bytes(content)
    target = tmp_path / "root"
    with pytest.raises(ArchiveChanged, match="changed after it was checked"):
        extract(archive, target)
    assert not target.exists()


def test_names_that_lead_out_of_the_folder_stay_in_it(tmp_path: Path) -> None:
    path = tiny_archive(tmp_path)
    names = ["../out.py", "../../out.py", "/out.py", "a/../../out.py", "../root-beside/out.py"]
    with zipfile.ZipFile(path, "a") as file:
        for name in names:
            file.writestr(name, "evil")
    target = tmp_path / "deep" / "root"
    target.parent.mkdir()
    extract(read_archive(path), target)
    outside = [found for found in tmp_path.rglob("out.py") if target not in found.parents]
    assert outside == []


def test_a_link_in_an_archive_becomes_a_plain_file(tmp_path: Path) -> None:
    path = tiny_archive(tmp_path)
    link = zipfile.ZipInfo("model/passwd")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    extract(read_archive(path), tmp_path / "root")
    found = tmp_path / "root" / "model" / "passwd"
    assert not found.is_symlink()
    assert found.read_text() == "/etc/passwd"


def test_nothing_of_the_copy_is_left(tmp_path: Path) -> None:
    archive = read_archive(tiny_archive(tmp_path / "store"))
    extract(archive, tmp_path / "root")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "store"]
    assert (tmp_path / "root" / "entry.py").is_file()
