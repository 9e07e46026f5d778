"""The loop on a state folder of its own: its page is served here, and a thread answers revisions as a reconciler would.
On a real stack: tests/live/test_observe.py, loadtest/autoscale."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from marctl.capacity.autoscaler import Autoscaler, Outcome
from marctl.capacity.decide import Decision, Load, Room, Target
from marctl.capacity.run import AutoscalerRuns, scale
from marctl.capacity.settings import Settings
from marctl.core.process import Identity
from marctl.core.sole import sole_holder
from marctl.stack.autoscaler import last_report
from marctl.stack.document import Document, Model, Version
from marctl.stack.follow import FollowsPlace
from marctl.stack.look import NotRunning
from marctl.stack.ports import Ports
from marctl.stack.report import Answer, Following, Status
from marctl.stack.state import Running, State

VERSION = Version(archive="sha256:" + "0" * 64, file="m-1.mar", workers=1)
PAGE = """handler_requests_total{{model="m",version="1"}} {answered}
handler_seconds_total{{model="m",version="1"}} {busy}
batcher_queue_size{{model="m",version="1"}} 0.0
marctl_workers_ready{{model="m",version="1"}} 1.0
"""


class Page(BaseHTTPRequestHandler):
    """Ten more requests of 10 ms with each look."""

    looks = 0

    def do_GET(self) -> None:
        type(self).looks += 1
        body = PAGE.format(answered=10.0 * self.looks, busy=0.1 * self.looks).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """It declares m 1 with one worker; what runs is this very process."""
    made = State(tmp_path / "state")
    made.create()
    own = Identity.of(os.getpid())
    assert own is not None
    made.reconciler_lock.write_bytes(msgspec.json.encode(own))
    made.history.commit(document(VERSION), expected=0, actor="ann", command="up")
    made.save_status(Status(observed=1, in_force=1))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    page = f"http://127.0.0.1:{server.server_port}"
    made.save_running(Running(Ports(*range(1, 10)), page, page, page, "", str(tmp_path), "2026-01-01", own))
    yield made
    server.shutdown()
    server.server_close()


def document(version: Version) -> Document:
    return Document({"m": Model(default="1", versions={"1": version})})


@contextmanager
def answering(state: State, answer: Answer) -> Iterator[None]:
    """Every further revision gets this answer."""
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(0.01):
            newest = state.history.current().revision
            state.save_status(Status(observed=newest, answers={str(newest): answer}))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def wants(workers: int) -> Decision:
    return Decision(workers, float(workers), "load", "a test wants it")


def autoscaler(state: State, told: list[Outcome], workers: int, *, dry_run: bool = False) -> Autoscaler:
    """Whose rule wants so many workers."""
    return Autoscaler(state, Settings(), told.append, dry_run=dry_run, rule=lambda *_: wants(workers))


def workers_now(state: State) -> int | str:
    return state.history.current().document.models["m"].versions["1"].workers


def test_a_decision_becomes_a_revision_that_says_who_and_why(state: State) -> None:
    told: list[Outcome] = []
    made = autoscaler(state, told, 3)
    with answering(state, Answer("in force")):
        made.step()
        assert workers_now(state) == 1, "one look says nothing yet"
        made.step()
    newest = state.history.current()
    assert (newest.actor, newest.command, newest.reason) == ("autoscaler", "autoscale m 1 3", "a test wants it")
    assert workers_now(state) == 3
    assert str(told[-1]) == "m 1: from 1 to 3 workers (revision 2): a test wants it"
    [report] = last_report(state).versions
    assert (report.wanted, report.kind, report.ups, report.downs) == (3, "load", 1, 0)
    assert report.start_s is not None


def test_what_a_start_takes_is_known_after_a_restart(state: State) -> None:
    with answering(state, Answer("in force")):
        first = autoscaler(state, [], 3)
        first.step()
        first.step()
    seen: list[Load] = []

    def rule(_: Target, load: Load, __: Room) -> Decision:
        seen.append(load)
        return wants(3)

    again = Autoscaler(state, Settings(), lambda _: None, rule=rule)
    again.step()
    again.step()
    assert seen[-1].start_s == last_report(state).versions[0].start_s
    assert seen[-1].peak is None, "for how long nothing asked for a worker is not known after a restart"


def test_whoever_changed_the_state_meanwhile_comes_first(state: State) -> None:
    def rule(*_: object) -> Decision:
        changed = document(msgspec.structs.replace(VERSION, workers=2))
        newest = state.history.current().revision
        if newest == 1:
            state.history.commit(changed, expected=newest, actor="bob", command="scale m 1 2")
        return wants(7)

    told: list[Outcome] = []
    made = Autoscaler(state, Settings(), told.append, rule=rule)
    with answering(state, Answer("in force")):
        made.step()
        made.step()
    assert workers_now(state) == 2
    assert told[-1].done == "not done, the state was changed meanwhile"


def test_a_dry_run_tells_and_changes_nothing(state: State) -> None:
    told: list[Outcome] = []
    made = autoscaler(state, told, 3, dry_run=True)
    made.step()
    made.step()
    assert state.history.current().revision == 1
    assert not state.autoscaler_report.exists()
    assert "from 1 to 3 workers (dry run, nothing is changed)" in str(told[-1])


def test_a_change_that_was_taken_back_is_not_tried_again_at_once(state: State) -> None:
    told: list[Outcome] = []
    made = autoscaler(state, told, 3)
    with answering(state, Answer("taken back", "no memory\nfor a worker", "load_failed")):
        for _ in range(4):
            made.step()
    assert state.history.current().revision == 2
    assert told[-2].done == "not done, no memory"
    assert "left alone for a while" in told[-1].decision.reason


def test_it_stays_put_while_another_change_is_brought_into_force(state: State) -> None:
    state.save_status(Status(observed=0))
    assert autoscaler(state, [], 3).step() == []


@pytest.mark.parametrize("version", [{"workers": 0}, {"workers": "shared"}])
def test_parked_and_shared_versions_are_left_alone(state: State, version: dict[str, int | str]) -> None:
    own = msgspec.structs.replace(VERSION, workers=1)
    other = msgspec.structs.replace(VERSION, **version)
    both = Document({"m": Model(default="2", versions={"1": other, "2": own})})
    state.history.commit(both, expected=1, actor="ann", command="apply")
    state.save_status(Status(observed=2))
    assert [each.key for each in autoscaler(state, [], 3).step()] == [("m", "2")]


def test_without_a_stack_or_its_page_nothing_is_decided(state: State) -> None:
    running = state.running()
    assert running is not None
    made = autoscaler(state, [], 3)
    state.save_running(msgspec.structs.replace(running, metrics="http://127.0.0.1:9"))
    assert made.step() == []
    state.forget_running()
    assert made.step() == []
    with pytest.raises(NotRunning):
        scale(state, Settings(), lambda _: None, once=True, dry_run=True)


@pytest.mark.parametrize("name", ["running.json", "status.json", "history.jsonl", "autoscaler.json"])
def test_a_damaged_file_is_no_reason_to_end(state: State, name: str) -> None:
    made = autoscaler(state, [], 3)
    (state.folder / name).write_text("{damaged\n")
    made.step()
    autoscaler(state, [], 3).step()


def test_a_node_that_follows_a_place_is_scaled_there(state: State, tmp_path: Path) -> None:
    state.save_following(Following(str(tmp_path / "document.yaml")))
    with pytest.raises(FollowsPlace, match="its state is changed there"):
        autoscaler(state, [], 3).step()


def test_a_second_autoscaler_is_refused_and_a_dry_run_is_not(state: State) -> None:
    def taken() -> AutoscalerRuns:
        raise AssertionError

    with sole_holder(state.autoscaler_lock, taken):
        with pytest.raises(AutoscalerRuns, match=f"pid {os.getpid()}"):
            scale(state, Settings(), lambda _: None, once=True)
        scale(state, Settings(every_seconds=0.5), lambda _: None, once=True, dry_run=True)
