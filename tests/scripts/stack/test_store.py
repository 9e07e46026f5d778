from __future__ import annotations

from pathlib import Path

import pytest

from marctl.build.reader import read_archive
from marctl.core.errors import UserError
from marctl.stack.store import put
from tests.tiny_archives import FAILS_TO_LOAD, tiny_archive


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_an_archive_is_copied_into_the_store(tmp_path: Path, store: Path) -> None:
    given = read_archive(tiny_archive(tmp_path))
    with put(given, store, force=False) as stored:
        assert stored.path == store / "mcqa-1.0.mar"
    assert read_archive(store / "mcqa-1.0.mar").sha256 == given.sha256


def test_an_archive_that_is_there_already_stays_even_after_a_failure(tmp_path: Path, store: Path) -> None:
    given = read_archive(tiny_archive(store))
    with pytest.raises(ZeroDivisionError), put(given, store, force=False):
        raise ZeroDivisionError
    assert given.path.exists()


def test_another_file_of_that_name_is_refused(tmp_path: Path, store: Path) -> None:
    there = read_archive(tiny_archive(store))
    given = read_archive(tiny_archive(tmp_path, handler=FAILS_TO_LOAD))
    with pytest.raises(UserError, match=r"other content.*--force"), put(given, store, force=False):
        pass
    assert read_archive(there.path).sha256 == there.sha256


def test_force_replaces_it(tmp_path: Path, store: Path) -> None:
    tiny_archive(store)
    given = read_archive(tiny_archive(tmp_path, handler=FAILS_TO_LOAD))
    with put(given, store, force=True) as stored:
        assert stored.sha256 == given.sha256
    assert [path.name for path in store.iterdir()] == ["mcqa-1.0.mar"]


def test_a_failure_leaves_the_store_as_it_was(tmp_path: Path, store: Path) -> None:
    there = read_archive(tiny_archive(store))
    for given in (tiny_archive(tmp_path, handler=FAILS_TO_LOAD), tiny_archive(tmp_path, version="2.0")):
        with pytest.raises(ZeroDivisionError), put(read_archive(given), store, force=True):
            raise ZeroDivisionError
    assert [path.name for path in store.iterdir()] == ["mcqa-1.0.mar"]
    assert read_archive(there.path).sha256 == there.sha256
