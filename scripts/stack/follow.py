"""A node that follows a document which stands elsewhere: what changes there becomes a revision of its own history.

The reconciler makes it so, or takes it back with the reason, as it does with every revision. A content that was taken
back, is invalid or names archives that this node's store lacks is a condition, and the node goes on with what it has.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.core.files import WriteFailed
from marctl.stack.document import Declared, Document, DocumentInvalid
from marctl.stack.history import Conflict, Revision
from marctl.stack.place import NODE, Place, Report, absolute, place_of, read_content
from marctl.stack.plan import TAKE_BACK
from marctl.stack.report import Condition, Following, Status
from marctl.stack.state import DamagedState, Running, State
from marctl.stack.store import missing
from marctl.stack.versions import Notify

ACTOR = "follow"
LOOK_S = 1.0
REPORT_S = 3.0
"""Between two reports of the same content."""
CLOSE_S = 2.0
MISSING_S = 5.0
"""Between two looks at the store for archives that it lacked: each one that is there is read whole."""


class FollowsPlace(UserError):
    """The state is changed where it stands, not here."""


def refuse_following(state: State) -> None:
    """Raise FollowsPlace if this state folder follows a place."""
    following = state.following()
    if following is not None:
        name = place_of(following.place).name
        raise FollowsPlace(
            f"this node follows {name}, so its state is changed there and not by commands here; "
            f"change the document there: `marctl state show --from {name} > FILE`, edit FILE, "
            f"`marctl state apply FILE --to {name}`"
        )


def begin(state: State, text: str | None, *, goes_on: bool) -> tuple[Place | None, str | None]:
    """The place to follow, kept in follow.json, or None; and the name that this node had, where it `goes_on`.

    `goes_on`: what runs already is taken over, with the place that it follows unless another one is given.
    Raises UserError for a malformed place, and if follow.json no longer tells which one it was.
    """
    try:
        former = state.following()
    except DamagedState as err:
        if text is None and goes_on:
            raise UserError(
                "follow.json is damaged; name the place that this node follows: marctl up --follow PLACE"
            ) from err
        former = None
    if text is None and goes_on and former is not None:
        text = former.place
    if text is None:
        state.forget_following()
        return None, None
    place = place_of(absolute(text))
    if former is None or former.place != place.text:
        state.save_following(Following(place.text))
    return place, former.node or None if former is not None and goes_on else None


def readable(state: State) -> Following | None:
    """follow.json; None for one that is missing or damaged."""
    with suppress(DamagedState):
        return state.following()
    return None


def node_name(given: str | None, running: Running) -> str:
    """What this node is called among those that follow: by default the host's name and the port where clients ask."""
    if given is not None:
        return given
    host = re.sub(r"[^A-Za-z0-9_.-]+", "-", socket.gethostname()).lstrip("-_.")[:80] or "node"
    return f"{host}:{running.ports.gateway if running.gateway else running.ports.inference}"


def check_node(name: str) -> None:
    """Raise UserError for a name that could not be a file's."""
    if not NODE.fullmatch(name):
        raise UserError(f"node {name!r}: a name has letters, digits and _ . : -, begins with one of the first two")


@contextmanager
def following(state: State, place: Place | None, node: str, store: Path, notify: Notify) -> Iterator[None]:
    """Follow the place until the end of the block, from a thread; the first look is over when the block begins."""
    if place is None:
        yield
        return
    follower = Follower(state, place, node, store, notify)
    follower.look()
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(LOOK_S):
            follower.look()

    thread = threading.Thread(target=work, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(CLOSE_S)


class Follower:
    """Looks at one place for one state folder; `look` is called about once a second."""

    def __init__(self, state: State, place: Place, node: str, store: Path, notify: Notify) -> None:
        self._state = state
        self._place = place
        self._node = node
        self._store = store
        self._notify = notify
        self._digest = ""
        """Of the content that was seen last; what follows from it is kept until another one comes."""
        self._declared: Declared | None = None
        self._faults = ""
        self._committed = committed(state)
        """Digest of the content that became a revision last: not once more if that one was taken back."""
        self._lacking: tuple[tuple[str, int], str, float] = (("", 0), "", 0.0)
        self._trouble = ""
        self._in_force = False
        self._written: Following | None = None
        self._reported: Report | None = None
        self._reported_at = 0.0

    def look(self) -> None:
        """One look at the place, and what follows from it; whatever fails is told, and tried again by the next one."""
        self._in_force = False
        try:
            trouble = self._take(self._place.read())
        except (UserError, OSError) as err:
            trouble = str(err)
        except Exception as err:  # this thread must outlive a fault of its own
            trouble = f"{type(err).__name__}: {err}"
        self._tell(trouble)
        with suppress(UserError, OSError):  # nodes that cannot report are shown as old
            self._report()

    def _take(self, content: bytes) -> str:
        """Make it a revision if it differs from what is declared; why it cannot be, empty if there is no reason."""
        self._parse(content)
        if self._declared is None:
            return self._faults
        wanted = self._declared.document
        newest = self._state.history.current()
        answered = status_of(self._state).observed >= newest.revision
        if newest.document == wanted:
            self._committed = self._digest
            self._in_force = answered
            return ""
        if newest.command == TAKE_BACK and self._committed == self._digest:
            return f"this document was taken back: {newest.reason}"
        if lacking := self._lacks(newest, wanted):
            return lacking
        if not answered:
            return self._trouble  # it waits for its turn, as commands do
        return self._commit(newest, wanted)

    def _parse(self, content: bytes) -> None:
        digest = sha256(content).hexdigest()
        if digest == self._digest:
            return
        if self._digest:
            self._committed = ""  # another content was there meanwhile, so it may be tried again
        self._digest, self._declared, self._faults = digest, None, ""
        try:
            self._declared = read_content(content, self._place.name)
        except DocumentInvalid as err:
            self._faults = str(err)

    def _lacks(self, newest: Revision, wanted: Document) -> str:
        """What the store lacks of it; looked at again after a while."""
        key = (self._digest, newest.revision)
        if self._lacking[0] != key or time.monotonic() - self._lacking[2] > MISSING_S:
            found = missing(newest.document, wanted, self._store, self._state.trust())
            text = listed(f"{self._place.name} declares what the store lacks", found) if found else ""
            self._lacking = (key, text, time.monotonic())
        return self._lacking[1]

    def _commit(self, newest: Revision, wanted: Document) -> str:
        assert self._declared is not None
        named = f"its revision {self._declared.revision}, " if self._declared.revision is not None else ""
        try:
            self._state.history.commit(
                wanted,
                expected=newest.revision,
                actor=ACTOR,
                command=f"follow {self._place.name}",
                reason=f"{named}sha256:{self._digest}",
            )
        except Conflict:
            return self._trouble  # the next look compares again
        self._committed = self._digest
        return ""

    def _tell(self, trouble: str) -> None:
        """To the log when it changes, and to follow.json, where `marctl status` reads it."""
        if trouble != self._trouble:
            name = self._place.name
            self._notify(f"warning: following {name}: {trouble}" if trouble else f"following {name}: all is well again")
            self._trouble, since = trouble, datetime.now(UTC).isoformat(timespec="seconds")
        else:
            since = self._written.since if self._written else datetime.now(UTC).isoformat(timespec="seconds")
        revision = self._declared.revision if self._declared else None
        told = Following(self._place.text, self._node, self._digest, revision, trouble, since)
        if told != self._written:
            with suppress(WriteFailed):
                self._state.save_following(told)
                self._written = told

    def _report(self) -> None:
        """When it has changed, and every few seconds as a sign of life."""
        status = status_of(self._state)
        own = [Condition("the followed document", self._trouble, "")] if self._trouble else []
        revision = self._declared.revision if self._declared else None
        in_force = self._in_force and not own
        conditions = [*own, *status.conditions]
        report = Report(self._node, 0.0, self._digest, revision, in_force, status.observed, conditions)
        if report != self._reported or time.monotonic() - self._reported_at >= REPORT_S:
            self._place.report(report)
            self._reported, self._reported_at = report, time.monotonic()


def committed(state: State) -> str:
    """Digest of the last content that was followed, if nobody but the reconciler changed the state after it."""
    last = ""
    with suppress(UserError):
        for revision in state.history.revisions():
            if revision.command != TAKE_BACK:
                last = revision.reason.rpartition("sha256:")[2] if revision.actor == ACTOR else ""
    return last


def status_of(state: State) -> Status:
    """A damaged report is written anew by the reconciler."""
    with suppress(DamagedState):
        return state.status()
    return Status()


def conditions(found: Following) -> list[dict[str, str]]:
    """As `marctl status` lists them."""
    if not found.trouble:
        return []
    condition = Condition("the followed document", found.trouble, found.since)
    encoded: dict[str, str] = msgspec.to_builtins(condition)
    return [encoded]
