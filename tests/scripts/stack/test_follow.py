from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marctl.build.reader import read_archive
from marctl.core.errors import UserError
from marctl.stack import document
from marctl.stack.document import Declared, Document, Model, Version
from marctl.stack.follow import Follower, FollowsPlace, begin, check_node, refuse_following
from marctl.stack.history import Conflict, Revision
from marctl.stack.place import (
    FilePlace,
    Place,
    PlaceAway,
    RedisPlace,
    Report,
    place_of,
    publish,
    read_content,
    revision_of,
)
from marctl.stack.plan import TAKE_BACK
from marctl.stack.report import Status
from marctl.stack.state import State
from marctl.stack.store import digest_of
from tests.full_disk import fill, small_disk
from tests.redis_servers import TestRedis
from tests.tiny_archives import tiny_archive


class Node:
    """A follower whose reconciler is played by `answer` and `take_back`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "place.yaml"
        self.state = State(folder / "state")
        self.state.create()
        self.store = folder / "store"
        self.archive = digest_of(read_archive(tiny_archive(self.store)))
        self.notes: list[str] = []
        self.start()

    def start(self) -> None:
        place, _ = begin(self.state, str(self.path), goes_on=False)
        assert place is not None
        self.follower = Follower(self.state, place, "one", self.store, self.notes.append)

    def document(self, workers: int, file: str = "mcqa-1.0.mar") -> Document:
        version = Version(archive=self.archive, file=file, workers=workers)
        return Document({"mcqa": Model(default="1.0", versions={"1.0": version})})

    def write(self, content: Document | str, revision: int = 1) -> None:
        text = content if isinstance(content, str) else document.dump(content, revision)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(self.path)

    def look(self) -> str:
        """The trouble that is told afterwards."""
        self.follower.look()
        found = self.state.following()
        assert found is not None
        return found.trouble

    def answer(self) -> None:
        self.state.save_status(Status(observed=self.newest.revision))

    def take_back(self) -> None:
        history, newest = self.state.history, self.newest
        former = history.find(newest.revision - 1).document if newest.revision > 1 else Document()
        history.commit(former, expected=newest.revision, actor="reconciler", command=TAKE_BACK, reason="it broke")
        self.answer()

    @property
    def newest(self) -> Revision:
        return self.state.history.current()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """It serves one worker of mcqa 1.0, as its place says."""
    made = Node(tmp_path)
    made.write(made.document(1))
    assert made.look() == ""
    made.answer()
    return made


def test_what_changes_at_the_place_becomes_one_revision(node: Node) -> None:
    node.write(node.document(2), revision=7)
    for _ in range(3):
        assert node.look() == ""
    assert (node.newest.revision, node.newest.document) == (2, node.document(2))
    assert (node.newest.actor, node.newest.command) == ("follow", f"follow {node.path}")
    assert node.newest.reason.startswith("its revision 7, sha256:")


def test_a_change_waits_until_the_one_before_it_is_answered(node: Node) -> None:
    for workers in (2, 3):
        node.write(node.document(workers))
        node.look()
    assert node.newest.document == node.document(2)
    node.answer()
    node.look()
    assert node.newest.document == node.document(3)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_taken_back_is_not_declared_again_until_it_changes(node: Node, restarted: bool) -> None:
    node.write(node.document(2))
    node.look()
    node.take_back()
    if restarted:
        node.start()
    for _ in range(2):
        assert node.look() == "this document was taken back: it broke"
    assert node.newest.revision == 3
    node.write(node.document(2), revision=2)
    assert node.look() == ""
    assert (node.newest.revision, node.newest.document) == (4, node.document(2))


def test_what_was_taken_back_is_tried_again_after_another_content_was_there(node: Node) -> None:
    node.write(node.document(2))
    node.look()
    node.take_back()
    node.write(node.document(1))
    assert node.look() == ""
    node.write(node.document(2))
    assert node.look() == ""
    assert node.newest.revision == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the document"),
        ("revision: 3\n", "it has no `models`"),
        ("{}", "it has no `models`"),
        ("models: {mcqa: {default: '3'", "not YAML"),
        ("models: [1]\n", "models"),
        ("\x00", "not YAML"),
    ],
)
def test_what_is_no_document_changes_nothing(node: Node, content: str, told: str) -> None:
    node.write(content)
    assert told in node.look()
    assert node.newest.revision == 1
    node.write(node.document(1))
    assert node.look() == ""
    assert node.notes[-1] == f"following {node.path}: all is well again"


def test_all_faults_are_told_at_once(node: Node) -> None:
    node.write(
        document.dump(node.document(1), 1).replace("default: '1.0'", "default: '7.0'")
        + "    traffic: {split: {'8.0': 1}}\n"
    )
    trouble = node.look()
    assert "7.0" in trouble
    assert "8.0" in trouble


def test_nothing_at_all_can_be_declared_explicitly(node: Node) -> None:
    node.write("models: {}\n")
    assert node.look() == ""
    assert node.newest.document == Document()


def test_a_place_that_is_away_changes_nothing_and_is_caught_up_with(node: Node) -> None:
    node.path.unlink()
    assert "cannot be read: No such file or directory; put the document there" in node.look()
    assert node.newest.revision == 1
    node.write(node.document(2))
    assert node.look() == ""
    assert node.newest.document == node.document(2)


def test_missing_archives_are_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marctl.stack.follow.MISSING_S", 0.0)
    made = tiny_archive(node.path.parent, version="2.0")
    second = Version(archive=digest_of(read_archive(made)), file=made.name, workers=1)
    models = node.document(1).models["mcqa"].versions | {"2.0": second}
    node.write(Document({"mcqa": Model(default="1.0", versions=models)}))
    assert f"{made.name} is gone" in node.look()
    assert node.newest.revision == 1
    os.link(made, node.store / made.name)
    assert node.look() == ""
    assert node.newest.revision == 2


def test_a_full_disk_is_told_and_the_change_comes_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        (tmp_path / "state").symlink_to(disk)
        node = Node(tmp_path)
        node.write(node.document(1))
        assert node.look() == ""
        node.state.save_status(Status(observed=1000))
        ballast = fill(disk)
        workers = 1
        while not node.notes:  # the last page of the history has room for some
            workers += 1
            node.write(node.document(workers))
            node.follower.look()
        assert "No space left" in node.notes[-1]
        assert node.newest.document == node.document(workers - 1)
        ballast.unlink()
        assert node.look() == ""
        assert node.newest.document == node.document(workers)


def test_a_mounted_config_map_that_swaps_its_link_is_followed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for i in (1, 2):
        (tmp_path / f"..{i}").mkdir()
        (tmp_path / f"..{i}" / "place.yaml").write_text(document.dump(node.document(i), 1))
    (tmp_path / "..data").symlink_to("..1")
    node.path.symlink_to("..data/place.yaml")
    node.look()
    node.answer()
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    node.look()
    assert node.newest.document == node.document(2)


def test_a_file_that_is_being_written_in_place_is_not_read_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "place.yaml"
    path.write_text("whole")
    place = FilePlace(path)
    assert place.read() == b"whole"
    path.write_text("ha")
    monkeypatch.setattr(time, "sleep", lambda _: path.write_text("half and the rest"))
    assert place.read() == b"whole"
    monkeypatch.undo()
    assert place.read() == b"half and the rest"


def test_a_file_that_does_not_change_is_not_opened(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: Path) -> bytes:
        raise AssertionError

    monkeypatch.setattr(Path, "read_bytes", opened)
    assert FilePlace.read(node.follower._place)  # type: ignore[arg-type]  # the node's place is a file


def test_a_following_state_refuses_commands_and_names_the_cure(node: Node) -> None:
    with pytest.raises(FollowsPlace, match=f"marctl state apply FILE --to {node.path}"):
        refuse_following(node.state)
    assert begin(node.state, None, goes_on=False) == (None, None)
    refuse_following(node.state)


def test_a_take_over_goes_on_with_the_place_and_the_name(node: Node) -> None:
    place, name = begin(node.state, None, goes_on=True)
    assert place is not None
    assert (place.text, name) == (str(node.path), "one")
    (node.state.folder / "follow.json").write_text("{")
    with pytest.raises(UserError, match="name the place that this node follows"):
        begin(node.state, None, goes_on=True)
    assert begin(node.state, str(node.path), goes_on=True)[0] is not None


@pytest.mark.parametrize("name", ["", "../x", ".x", "a/b", "a b", "x" * 101])
def test_odd_names_of_nodes_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="a name has letters"):
        check_node(name)


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return FilePlace(tmp_path / "place.yaml")
    server: TestRedis = request.getfixturevalue("redis_server")
    server.client.flushdb()
    return RedisPlace(f"{server.url}#some%20name")


def declared(default: str, revision: int | None = None) -> Declared:
    version = Version(archive="sha256:" + "0" * 64, file="mcqa-1.0.mar", workers=1)
    return Declared(revision, {"mcqa": Model(default=default, versions={"1.0": version, "2.0": version})})


def test_a_document_is_published_onto_the_revision_that_it_names(place: Place) -> None:
    assert place.peek() is None
    assert publish(place, declared("1.0")) == 1
    assert publish(place, declared("2.0", revision=1)) == 2
    with pytest.raises(Conflict, match="holds revision 2, the document was made from revision 1"):
        publish(place, declared("1.0", revision=1))
    assert read_content(place.read(), "").models == declared("2.0").models
    assert publish(place, declared("1.0")) == 3


def test_a_place_that_was_changed_meanwhile_is_not_written(place: Place) -> None:
    place.replace(None, b"first")
    for expected in (None, b"other"):
        with pytest.raises(Conflict):
            place.replace(expected, b"second")
    assert place.read() == b"first"


def test_every_node_sees_the_others_reports(place: Place) -> None:
    for name in ("one", "two"):
        place.report(Report(name, 0.0, digest="d", in_force=True))
    assert [(report.node, age < 5) for report, age in place.reports()] == [("one", True), ("two", True)]


def test_a_file_that_is_not_writable_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mounted"
    with small_disk(path, "1m"):
        (path / "place.yaml").write_text("models: {}\n")
        os.system(f"mount -o remount,ro {path}")
        place = place_of(str(path / "place.yaml"))
        with pytest.raises(PlaceAway, match="not writable; change it where it comes from"):
            publish(place, declared("1.0"))
        with pytest.raises(PlaceAway):
            place.report(Report("one", 0.0))
        assert place.reports() == []
        assert place.read() == b"models: {}\n"


def test_a_redis_that_hangs_holds_a_look_up_no_longer_than_its_timeout(redis_server: TestRedis) -> None:
    place = RedisPlace(redis_server.url)
    place.peek()
    with redis_server.frozen():
        began = time.monotonic()
        with pytest.raises(PlaceAway, match="does not answer"):
            place.read()
        assert time.monotonic() - began < 0.8


def test_a_password_is_not_shown() -> None:
    place = place_of("redis://:secret@host/0#x")
    assert place.name == "redis://***@host/0#x"
    with pytest.raises(UserError, match="no Redis URL"):
        place_of("redis://host:port/0")


def test_of_many_writers_at_once_one_wins(place: Place) -> None:
    publish(place, declared("1.0"))

    def write(_: int) -> bool:
        try:
            publish(place_of(place.text), declared("2.0", revision=1))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(32))) == 1
    assert revision_of(place.peek()) == 2
