from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from marctl.core.files import WriteFailed
from marctl.stack.document import Document, Model, Version
from marctl.stack.history import NOTHING, Conflict, History, HistoryDamaged, NoSuchRevision
from tests.full_disk import fill, small_disk


def document(workers: int) -> Document:
    version = Version(archive="sha256:" + "0" * 64, file="mcqa-1.0.mar", workers=workers)
    return Document({"mcqa": Model(default="1.0", versions={"1.0": version})})


def write(history: History, count: int) -> None:
    for _ in range(count):
        now = history.current().revision
        history.commit(document(now + 1), expected=now, actor="ann", command=f"scale mcqa 1.0 {now + 1}")


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(tmp_path)
    write(made, 4)
    return made


def lines(history: History) -> list[str]:
    return history.file.read_text().splitlines(keepends=True)


def test_before_the_first_revision_nothing_is_declared(tmp_path: Path) -> None:
    assert History(tmp_path).current() == NOTHING
    assert History(tmp_path).verify() == []


def test_every_revision_tells_who_when_how_and_what(tmp_path: Path) -> None:
    history = History(tmp_path)
    made = history.commit(document(2), expected=0, actor="ann", command="up", reason="first start")
    assert (made.revision, made.actor, made.command, made.reason) == (1, "ann", "up", "first start")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(made.at)).total_seconds()) < 5
    assert History(tmp_path).current() == made
    assert history.find(1).document == document(2)
    with pytest.raises(NoSuchRevision, match="no revision 2"):
        history.find(2)


def test_the_state_at_a_time_is_the_last_revision_before_it(history: History) -> None:
    second = history.find(2)
    assert history.at(datetime.fromisoformat(second.at)).revision in (2, 3)  # two may fall into one millisecond
    assert history.at(datetime(2000, 1, 1, tzinfo=UTC)) == NOTHING


def test_who_changes_an_old_revision_is_told_who_came_first(history: History) -> None:
    history.commit(document(9), expected=4, actor="bob", command="register x.mar")
    with pytest.raises(Conflict, match=r"since revision 4: revision 5 by bob at .* \(register x\.mar\)"):
        history.commit(document(1), expected=4, actor="ann", command="scale mcqa 1.0 1")
    assert history.current().document == document(9)


def test_a_hundred_changes_from_two_processes_are_all_kept_or_told_to_have_lost(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        won = sum(pool.map(race, [tmp_path, tmp_path]))
    history = History(tmp_path)
    assert won == history.current().revision
    assert 50 <= won <= 100
    assert history.verify() == []


def race(folder: Path) -> int:
    """Fifty tries; returns how many were not lost."""
    history, won = History(folder), 0
    for _ in range(50):
        try:
            history.commit(document(1), expected=history.current().revision, actor="x", command="y")
            won += 1
        except Conflict:
            pass
    return won


def test_a_whole_history_verifies(history: History) -> None:
    assert history.verify() == []
    assert [revision.revision for revision in history.revisions()] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", range(4))
def test_an_edited_line_is_found(history: History, number: int) -> None:
    there = lines(history)
    there[number] = there[number].replace("ann", "eve")
    history.file.write_text("".join(there))
    assert history.verify()


@pytest.mark.parametrize("number", range(4))
def test_a_lost_line_is_found(history: History, number: int) -> None:
    there = lines(history)
    del there[number]
    history.file.write_text("".join(there))
    assert history.verify()


def test_lines_in_another_order_are_found(history: History) -> None:
    first, second, *rest = lines(history)
    history.file.write_text("".join([second, first, *rest]))
    assert history.verify()


def test_an_edited_last_line_is_not_followed(history: History) -> None:
    *rest, last = lines(history)
    history.file.write_text("".join([*rest, last.replace("ann", "eve")]))
    with pytest.raises(HistoryDamaged, match="not as it was written"):
        history.current()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_torn_last_line_comes_back_by_itself(history: History, kept: float) -> None:
    whole = history.file.read_bytes()
    last = len(lines(history)[-1])
    history.file.write_bytes(whole[: len(whole) - last + int(last * kept)])
    assert history.current().revision == 4
    assert history.verify() == []
    assert history.file.read_bytes() == whole


def test_a_line_that_was_never_finished_is_passed_over_and_removed(history: History) -> None:
    with history.file.open("a") as file:
        file.write('{"revision": 5, "at": "20')
    assert history.current().revision == 4
    write(history, 1)
    assert [json.loads(line)["revision"] for line in lines(history)] == [1, 2, 3, 4, 5]
    assert history.verify() == []


def test_a_kill_between_the_line_and_the_head_loses_nothing(history: History) -> None:
    head = history.head.read_bytes()
    write(history, 1)
    history.head.write_bytes(head)
    assert history.current().revision == 5
    assert history.verify() == []
    write(history, 1)
    assert history.current().revision == 6
    assert history.verify() == []


def test_a_history_that_is_gone_is_not_taken_for_an_empty_one(history: History) -> None:
    history.file.unlink()
    with pytest.raises(HistoryDamaged, match=r"is lost, head\.json holds revision 4"):
        history.current()


def test_a_full_disk_changes_nothing_and_a_later_try_succeeds(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        history = History(disk)
        write(history, 3)
        ballast = fill(disk)
        with pytest.raises(WriteFailed, match="No space left on device; make room there and try again"):
            write(history, 20)  # the last block of the file may hold some more
        reached = history.current().revision
        assert history.verify() == []
        ballast.unlink()
        write(history, 1)
        assert history.current().revision == reached + 1
        assert history.verify() == []


WRITES = """
import sys
from pathlib import Path
from tests.scripts.stack.test_history import History, write
print(flush=True)
write(History(Path(sys.argv[1])), 1_000_000)
"""


def test_kills_at_any_moment_leave_a_history_that_goes_on(tmp_path: Path) -> None:
    reached = 0
    for i in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.03 + 0.011 * i)
            writer.send_signal(signal.SIGKILL)
        history = History(tmp_path)
        assert history.current().revision >= reached
        reached = history.current().revision
        assert history.verify() == []
    assert reached > 8
