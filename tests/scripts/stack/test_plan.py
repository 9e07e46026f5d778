from __future__ import annotations

import json
import zipfile
from pathlib import Path

import msgspec
import pytest

from marctl.core.order import version_order
from marctl.stack import plan
from marctl.stack.document import Document, dump, parse
from marctl.stack.history import History
from marctl.stack.plan import (
    TAKE_BACK,
    NothingToServe,
    computable,
    declare,
    drafted,
    find_archives,
    left_out,
    with_workers,
)
from tests.tiny_archives import FAILS_TO_LOAD, tiny_archive


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


def versions(document: Document) -> list[str]:
    return [f"{model} {version}" for model, version, _ in document.versions()]


def test_a_first_start_declares_all_and_the_highest_version_as_default(store: Path, notes: Notes) -> None:
    document = declare(Document(), sorted(store.glob("*.mar")), set(), notes)
    assert versions(document) == ["mcqa 1.2", "mcqa 1.9", "mcqa 1.10"]
    assert document.models["mcqa"].default == "1.10"
    assert {content.workers for _, _, content in document.versions()} == {1}
    assert notes == []


def test_a_draft_is_read_back_as_it_was_and_a_further_one_keeps_the_default(store: Path, notes: Notes) -> None:
    first = drafted(Document(), store, notes)
    assert versions(first) == ["mcqa 1.2", "mcqa 1.9", "mcqa 1.10"]
    written = dump(first)
    assert "revision" not in written
    assert parse(written, "the draft").document == first
    tiny_archive(store, version="1.11")
    second = drafted(first, store, notes)
    assert (versions(second)[-1], second.models["mcqa"].default) == ("mcqa 1.11", "1.10")


def test_a_draft_of_an_empty_store_is_refused(tmp_path: Path, notes: Notes) -> None:
    with pytest.raises(NothingToServe, match="marctl build"):
        drafted(Document(), tmp_path, notes)


def test_a_default_stays_where_it_is_and_new_versions_get_no_traffic(store: Path, notes: Notes) -> None:
    first = declare(Document(), [store / "mcqa-1.2.mar"], set(), notes)
    document = declare(first, sorted(store.glob("*.mar")), set(), notes)
    assert document.models["mcqa"].default == "1.2"
    assert "mcqa 1.10 is new and gets no traffic yet: marctl default mcqa 1.10" in notes


@pytest.mark.parametrize(
    ("gpus", "fault"), [([], None), (["NVIDIA L4"], "PyTorch was built without CUDA"), (["NVIDIA L4"], None)]
)
def test_what_needs_a_gpu_is_left_out_where_there_is_none_and_the_rest_is_served(
    gpus: list[str], fault: str | None, tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "names_of_gpus", lambda: gpus)
    monkeypatch.setattr(plan, "fault_of", lambda _: fault)
    usable = bool(gpus) and fault is None
    paths = [tiny_archive(tmp_path, version=device) for device in ("auto", "cuda")]
    for path in paths:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("metadata.json", json.dumps({"device": path.stem.removeprefix("mcqa-")}))
    assert computable(paths, notes) == (paths if usable else paths[:1])
    assert bool(notes) == (not usable)
    if notes:
        assert "mcqa-cuda.mar is left out: its recipe says `device: cuda`" in notes[0]


def test_what_an_operator_took_out_stays_out(store: Path, notes: Notes) -> None:
    document = declare(Document(), sorted(store.glob("*.mar")), {("mcqa", "1.9")}, notes)
    assert versions(document) == ["mcqa 1.2", "mcqa 1.10"]


def test_a_declared_version_whose_archive_is_missing_stays_declared(store: Path, notes: Notes) -> None:
    first = declare(Document(), sorted(store.glob("*.mar")), set(), notes)
    assert declare(first, [store / "mcqa-1.2.mar"], set(), notes) == first


def test_a_rebuilt_archive_is_declared_with_its_new_content_and_the_chosen_workers(store: Path, notes: Notes) -> None:
    first = with_workers(declare(Document(), [store / "mcqa-1.2.mar"], set(), notes), 3)
    rebuilt = declare(first, [tiny_archive(store, version="1.2", handler=FAILS_TO_LOAD)], set(), notes)
    before, after = first.find("mcqa", "1.2"), rebuilt.find("mcqa", "1.2")
    assert before is not None
    assert after is not None
    assert (before.archive != after.archive, after.workers) == (True, 3)


def test_two_files_of_one_version_are_declared_once(store: Path, notes: Notes) -> None:
    (store / "copy.mar").write_bytes((store / "mcqa-1.2.mar").read_bytes())
    document = declare(Document(), [*sorted(store.glob("mcqa*.mar")), store / "copy.mar"], set(), notes)
    assert versions(document) == ["mcqa 1.2", "mcqa 1.9", "mcqa 1.10"]
    assert ["copy.mar is left out" in note for note in notes] == [True]


def test_parked_versions_stay_parked_when_all_get_other_workers(store: Path, notes: Notes) -> None:
    document = declare(Document(), sorted(store.glob("*.mar")), set(), notes)
    parked = document.find("mcqa", "1.2")
    assert parked is not None
    document = document.with_version("mcqa", "1.2", msgspec.structs.replace(parked, workers=0))
    assert [content.workers for _, _, content in with_workers(document, 2).versions()] == [0, 2, 2]
    assert with_workers(document, None) == document


def test_only_what_an_operator_removed_is_left_out(tmp_path: Path, store: Path, notes: Notes) -> None:
    """A version that the reconciler took back may load the next time."""
    history = History(tmp_path / "state")
    both = declare(Document(), [store / "mcqa-1.2.mar", store / "mcqa-1.9.mar"], set(), notes)
    for document, command in (
        (both, "up"),
        (both.with_version("mcqa", "1.2", None), "unregister mcqa 1.2"),
        (both, "register mcqa-1.2.mar"),
        (both.with_version("mcqa", "1.2", None), TAKE_BACK),
    ):
        history.commit(document, expected=history.current().revision, actor="x", command=command)
    assert left_out(history.revisions()) == set()
    history.commit(Document(), expected=4, actor="x", command="unregister mcqa 1.9")
    assert left_out(history.revisions()) == {("mcqa", "1.9")}


def test_without_recipes_the_stores_archives_are_served(store: Path, notes: Notes) -> None:
    assert [path.name for path in find_archives(store / "none", store, notes)] == [
        "mcqa-1.10.mar",
        "mcqa-1.2.mar",
        "mcqa-1.9.mar",
    ]


def test_what_is_no_version_number_sorts_first() -> None:
    assert sorted(["1.10", "nightly", "1.9", "1.10rc1"], key=version_order) == ["nightly", "1.9", "1.10rc1", "1.10"]
