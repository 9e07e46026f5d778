"""Paths, folders, patterns and URIs."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from marctl.batch.places import NoSuchPlace, find_files, place_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "deep/er/c.csv", "deep/d.jsonl", ".hidden.csv", "_job/x.csv", "odd[1].csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n1\n")
    return tmp_path


def names(folder: Path, *patterns: str) -> list[str]:
    return [
        Path(place.path).relative_to(folder).as_posix() for place in find_files([f"{folder}/{p}" for p in patterns])
    ]


def test_a_folder_is_all_files_below_it_by_name_but_for_hidden_ones(folder: Path) -> None:
    assert names(folder, "") == ["a.csv", "b.csv", "deep/d.jsonl", "deep/er/c.csv", "odd[1].csv"]


def test_patterns_match_as_a_shell_does(folder: Path) -> None:
    assert names(folder, "*.csv") == ["a.csv", "b.csv", "odd[1].csv"]
    assert names(folder, "**/*.csv") == ["a.csv", "b.csv", "deep/er/c.csv", "odd[1].csv"]
    assert names(folder, "deep/?.jsonl") == ["deep/d.jsonl"]
    assert names(folder, "[ab].csv") == ["a.csv", "b.csv"]


def test_a_file_is_named_by_its_own_name_even_if_that_looks_like_a_pattern(folder: Path) -> None:
    assert names(folder, "odd[1].csv") == ["odd[1].csv"]


def test_a_file_that_several_arguments_name_is_read_once(folder: Path) -> None:
    assert names(folder, "b.csv", "*.csv") == ["b.csv", "a.csv", "odd[1].csv"]


@pytest.mark.parametrize("text", ["missing.csv", "no/*.csv", "nowhere/"])
def test_says_what_is_not_there(folder: Path, text: str) -> None:
    with pytest.raises(NoSuchPlace, match=r"no such file|no file"):
        find_files([f"{folder}/{text}"])


def test_any_scheme_of_fsspec_can_be_read() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("rows/1.csv", "rows/2.csv", "other.csv"):
        memory.pipe(f"/places/{name}", b"x\n1\n")
    found = find_files(["memory://places/rows/*.csv"])
    assert [place.shown for place in found] == ["memory://places/rows/1.csv", "memory://places/rows/2.csv"]
    with place_of(found[1].text).filesystem.open_input_stream(found[1].path) as stream:
        assert stream.read() == b"x\n1\n"


def test_refuses_keys_in_a_uri_and_does_not_repeat_them() -> None:
    with pytest.raises(NoSuchPlace, match="AWS_ACCESS_KEY_ID") as raised:
        place_of("s3://me:secret@bucket/rows.csv")
    assert "secret" not in str(raised.value).replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize("text", ["nosuch://x/y", "s3://", "a\0b"])
def test_refuses_what_no_file_system_knows(text: str) -> None:
    with pytest.raises(NoSuchPlace):
        find_files([text])
