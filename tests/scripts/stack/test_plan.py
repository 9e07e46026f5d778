from __future__ import annotations

from pathlib import Path

import pytest

from scripts.core.errors import UserError
from scripts.core.order import version_order
from scripts.stack.plan import Plan, find_archives, make_plan
from scripts.stack.state import Choices
from tests.tiny_archives import tiny_archive


class Notes(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in ("1.9", "1.10", "1.2"):
        tiny_archive(tmp_path, version=version)
    return tmp_path


def plan(store: Path, notes: Notes, choices: Choices | None = None, workers: int | None = None) -> Plan:
    paths = [store / f"mcqa-{version}.mar" for version in ("1.9", "1.10", "1.2")]
    return make_plan(paths, store, choices or Choices(), workers, notes)


def versions(found: Plan) -> list[str]:
    return [archive.version for archive in found.archives]


def test_without_choices_all_are_served_and_the_highest_version_is_the_default(store: Path, notes: Notes) -> None:
    found = plan(store, notes)
    assert versions(found) == ["1.2", "1.9", "1.10"]
    assert found.defaults == {"mcqa": "1.10"}
    assert [found.workers_of(archive) for archive in found.archives] == [None] * 3


def test_choices_are_respected(store: Path, notes: Notes) -> None:
    tiny_archive(store, "embed", "0.1")
    choices = Choices({"mcqa": "1.2"}, {"mcqa/1.2": 2}, ["embed-0.1.mar"], ["mcqa/1.9"])
    found = plan(store, notes, choices)
    assert [f"{a.name} {a.version}" for a in found.archives] == ["embed 0.1", "mcqa 1.2", "mcqa 1.10"]
    assert found.defaults == {"embed": "0.1", "mcqa": "1.2"}
    assert found.workers_of(found.archives[1]) == 2
    assert notes == []


def test_a_vanished_extra_archive_is_a_warning(store: Path, notes: Notes) -> None:
    found = plan(store, notes, Choices(extra=["gone-1.mar"]))
    assert versions(found) == ["1.2", "1.9", "1.10"]
    assert ["gone-1.mar was registered by hand and is gone" in note for note in notes] == [True]


def test_a_vanished_default_is_a_warning(store: Path, notes: Notes) -> None:
    found = plan(store, notes, Choices(defaults={"mcqa": "7.0"}))
    assert found.defaults == {"mcqa": "1.10"}
    assert notes == ["warning: mcqa 7.0 was the chosen default and is not served; it is 1.10 now"]


def test_two_files_of_one_version_are_served_once(store: Path, notes: Notes) -> None:
    (store / "copy.mar").write_bytes((store / "mcqa-1.2.mar").read_bytes())
    found = plan(store, notes, Choices(extra=["copy.mar"]))
    assert versions(found) == ["1.2", "1.9", "1.10"]
    assert ["copy.mar is left out" in note for note in notes] == [True]


def test_a_worker_count_for_this_start_overrides_the_kept_ones(store: Path, notes: Notes) -> None:
    found = plan(store, notes, Choices(workers={"mcqa/1.2": 3}), workers=2)
    assert [found.workers_of(archive) for archive in found.archives] == [2, 2, 2]


def test_without_recipes_the_stores_archives_are_served(store: Path, notes: Notes) -> None:
    assert [path.name for path in find_archives(store / "none", store, notes)] == [
        "mcqa-1.10.mar",
        "mcqa-1.2.mar",
        "mcqa-1.9.mar",
    ]


def test_nothing_to_serve_is_an_error(tmp_path: Path, notes: Notes) -> None:
    with pytest.raises(UserError, match="nothing to serve"):
        make_plan([], tmp_path, Choices(), None, notes)


def test_what_is_no_version_number_sorts_first() -> None:
    assert sorted(["1.10", "nightly", "1.9", "1.10rc1"], key=version_order) == ["nightly", "1.9", "1.10rc1", "1.10"]
