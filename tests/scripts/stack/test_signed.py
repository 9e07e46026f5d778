"""Where a stack asks who vouches for an archive; with servers, see tests/live/test_signed.py."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from marctl.build.extract import ArchiveChanged
from marctl.build.reader import read_archive
from marctl.signing.trust import NotTrusted
from marctl.stack import document
from marctl.stack.document import Document, Model
from marctl.stack.follow import Follower
from marctl.stack.place import FilePlace
from marctl.stack.plan import declared, trusted_archives
from marctl.stack.servers import Request
from marctl.stack.state import DamagedState, State
from marctl.stack.store import declared_archive, missing, put, unpack
from marctl.stack.up import require
from tests.signers import Signers, signed
from tests.tiny_archives import FAILS_TO_LOAD, tiny_archive


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    made = Signers(tmp_path)
    made.key("alice", trusted=True)
    return made


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.create()
    return made


def request(**changes: object) -> Request:
    return msgspec.structs.replace(Request("recipes", "store", 0, 0, 0), **changes)


def document_of(path: Path) -> Document:
    archive = read_archive(path)
    model = Model(default=archive.version, versions={archive.version: declared(archive)})
    return Document({archive.name: model})


def test_the_requirement_holds_until_it_is_lifted(state: State, signers: Signers) -> None:
    assert state.trust() is None
    require(state, request(trusted=str(signers.trust.folder)))
    for each in (request(), request(follow="place")):
        require(State(state.folder), each)
        assert State(state.folder).trust() == signers.trust
    require(state, request(allow_unsigned=True))
    assert State(state.folder).trust() is None


def test_a_requirement_that_cannot_be_read_is_none_that_is_lifted(state: State, signers: Signers) -> None:
    state.require_signed(signers.trust.folder)
    (state.folder / "trust.json").write_text("{")
    with pytest.raises(DamagedState):
        state.trust()


def test_a_start_leaves_out_what_nobody_signed(tmp_path: Path, signers: Signers) -> None:
    store, notes = tmp_path / "store", list[str]()
    bob = signers.key("bob", trusted=True)
    good = signed(tiny_archive(store), bob)
    tiny_archive(store, version="2.0")
    (store / "noise-1.0.mar").write_bytes(b"noise")
    assert trusted_archives(store, signers.trust, notes.append) == [good]
    assert [note.partition(":")[0] for note in notes] == ["warning"] * 2


def test_an_archive_comes_into_the_store_with_its_signature(tmp_path: Path, signers: Signers) -> None:
    store = tmp_path / "store"
    given = read_archive(signed(tiny_archive(tmp_path), signers.key("bob", trusted=True)))
    with put(given, store, force=False) as stored:
        assert signers.check(stored.path) == "bob"
    signed(given.path, signers.key("carol", trusted=True))
    (signers.trust.folder / "bob.pub").unlink()
    with put(given, store, force=False) as stored:
        assert signers.check(stored.path) == "carol"


def test_a_failure_leaves_the_former_archive_and_its_signature(tmp_path: Path, signers: Signers) -> None:
    bob = signers.key("bob", trusted=True)
    there = signed(tiny_archive(tmp_path / "store"), bob)
    given = read_archive(tiny_archive(tmp_path, handler=FAILS_TO_LOAD))
    with pytest.raises(ZeroDivisionError), put(given, there.parent, force=True):
        raise ZeroDivisionError
    assert signers.check(there) == "bob"
    assert sorted(path.name for path in there.parent.iterdir()) == ["mcqa-1.0.mar", "mcqa-1.0.mar.sig"]


def test_a_declared_archive_must_be_vouched_for(tmp_path: Path, signers: Signers) -> None:
    path = tiny_archive(tmp_path / "store")
    content = declared(read_archive(path))
    with pytest.raises(NotTrusted):
        declared_archive(path.parent, "mcqa", "1.0", content, signers.trust)
    assert "is not signed" in missing(Document(), document_of(path), path.parent, signers.trust)[0]
    signed(path, signers.key("bob", trusted=True))
    assert declared_archive(path.parent, "mcqa", "1.0", content, signers.trust).path == path
    assert missing(Document(), document_of(path), path.parent, signers.trust) == []


@pytest.mark.parametrize("moment", ["before it is unpacked", "while it is unpacked to explain"])
def test_what_is_swapped_after_the_check_is_not_loaded(tmp_path: Path, signers: Signers, moment: str) -> None:
    path = signed(tiny_archive(tmp_path / "store"), signers.key("bob", trusted=True))
    archive = declared_archive(path.parent, "mcqa", "1.0", declared(read_archive(path)), signers.trust)
    if moment.startswith("while"):
        unpack(archive, tmp_path / "other")
    os.replace(tiny_archive(tmp_path / "evil", handler=FAILS_TO_LOAD), path)
    with pytest.raises(ArchiveChanged):
        unpack(archive, tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").rglob("*.py"))


def test_each_node_asks_its_own_keys_about_the_document_that_it_follows(tmp_path: Path, signers: Signers) -> None:
    """Of two nodes with the same document and the same store, only the one that requires no signature takes it."""
    path = tiny_archive(tmp_path / "store")
    place = tmp_path / "place.yaml"
    place.write_text(document.dump(document_of(path), 1))
    strict, free = State(tmp_path / "strict"), State(tmp_path / "free")
    strict.require_signed(signers.trust.folder)
    followers = [
        Follower(each, FilePlace(place), each.folder.name, path.parent, lambda _: None) for each in (strict, free)
    ]
    for follower in followers:
        follower.look()
    assert [each.history.current().revision for each in (strict, free)] == [0, 1]
    told = strict.following()
    assert told is not None
    assert "mcqa 1.0 is not loaded: it is not signed" in told.trouble
