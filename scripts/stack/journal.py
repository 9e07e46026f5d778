"""What a reconciler knows of its own work: progress, troubles that it tries again, answers; kept in status.json."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from marctl.core.errors import UserError
from marctl.core.files import WriteFailed
from marctl.stack.backoff import Backoff
from marctl.stack.report import KEPT_ANSWERS, KEPT_NOTES, Answer, Condition, Note, Status
from marctl.stack.state import DamagedState, State
from marctl.stack.versions import Notify

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0


class Journal:
    """A disk that is full must not end what runs: what cannot be written now is written with the next news."""

    def __init__(self, state: State, notify: Notify) -> None:
        self._state = state
        self._notify = notify
        self._conditions: dict[str, Condition] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._written = True
        try:
            former = state.status()
        except DamagedState as err:
            notify(f"warning: {err}")
            former = Status()
        self._status = msgspec.structs.replace(former, conditions=[])

    @property
    def in_force(self) -> int:
        """The newest revision that was in force as a whole."""
        return self._status.in_force

    @property
    def observed(self) -> int:
        return self._status.observed

    @property
    def retry_due(self) -> bool:
        """Whether something that failed is to be tried again now."""
        return any(backoff.due for backoff in self._backoffs.values())

    def waits(self, what: str) -> bool:
        """Whether something failed lately and its next try is not due yet."""
        backoff = self._backoffs.get(what)
        return backoff is not None and not backoff.due

    def note(self, text: str) -> None:
        """To whoever started this process, and to the commands that wait."""
        self._notify(text)
        number = self._status.notes[-1].number + 1 if self._status.notes else 1
        self._report(notes=[*self._status.notes[-KEPT_NOTES:], Note(number, text)])

    def trouble(self, what: str, err: UserError) -> None:
        """Told once; its next try is due after a while that doubles each time."""
        self._backoffs.setdefault(what, Backoff(RETRY_S, LONGEST_RETRY_S)).tried()
        self.warn(what, err)

    def warn(self, what: str, err: UserError) -> None:
        """Told once, of something that goes on as it is."""
        known = self._conditions.get(what)
        if known is None or known.reason != str(err):
            self._conditions[what] = Condition(what, str(err), datetime.now(UTC).isoformat(timespec="seconds"))
            self.note(f"warning: {what}: {err}")

    def try_now(self, what: str) -> None:
        """What it failed for may have changed."""
        self._backoffs.pop(what, None)

    def well(self, *names: str) -> None:
        """What troubled is in order."""
        for name in names:
            self._backoffs.pop(name, None)
            if self._conditions.pop(name, None):
                self.note(f"{name} is well again")

    def begin(self, known: set[str]) -> None:
        """A new revision: everything is tried again at once, and what it does not know troubles nobody."""
        self._backoffs.clear()
        self._conditions = {what: condition for what, condition in self._conditions.items() if what in known}

    def in_force_now(self, revision: int, *, asked: bool) -> None:
        """A revision is in force, apart from what is in trouble. `asked`: somebody may wait for its answer."""
        former = self._status
        if revision == former.observed == former.in_force and self._told() == former.conditions and self._written:
            return
        answers = dict(former.answers)
        if revision > former.observed and asked:
            answers[str(revision)] = Answer("in force")
        kept = dict(list(answers.items())[-KEPT_ANSWERS:])
        self._report(observed=revision, in_force=max(revision, former.in_force), answers=kept)

    def taken_back(self, revision: int, failed: Answer, text: str) -> None:
        """The answer of a revision, and of those before it that never came into force.

        Whoever waits for it gets it once the former revision is in force again.
        """
        numbers = range(max(self._status.in_force, self._status.observed) + 1, revision + 1)
        answers = self._status.answers | {str(number): failed for number in numbers}
        self._status = msgspec.structs.replace(self._status, answers=answers)
        self._notify(text)

    def flush(self) -> None:
        """Write what a full disk did not take."""
        if not self._written:
            self._report()

    def _told(self) -> list[Condition]:
        return [self._conditions[name] for name in sorted(self._conditions)]

    def _report(self, **changes: object) -> None:
        self._status = msgspec.structs.replace(self._status, conditions=self._told(), **changes)
        self._written = False
        with suppress(WriteFailed):
            self._state.save_status(self._status)
            self._written = True
