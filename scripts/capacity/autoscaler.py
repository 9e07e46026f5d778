"""Looks at a stack every few seconds, and declares as many workers as its load takes.

It writes revisions of the declared state as every other writer does, onto the revision that it looked at: whoever
changed the state meanwhile comes first, and it looks again. Nothing else is touched, and the stack serves on without
it. What it knows is measured anew after a start; only what a worker's start takes is kept, in its report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from threading import Event
from typing import Any

import msgspec

from marctl.capacity import limits
from marctl.capacity.decide import Decision, Load, Room, Target, decide
from marctl.capacity.samples import Key, look
from marctl.capacity.settings import Objective, Settings
from marctl.capacity.watch import Watch
from marctl.core.errors import Relayed, UserError
from marctl.core.files import WriteFailed, write_atomically
from marctl.stack.autoscaler import AutoscalerReport, Scaled, last_report
from marctl.stack.document import Document
from marctl.stack.follow import refuse_following
from marctl.stack.history import Conflict, HistoryDamaged, Revision
from marctl.stack.operations import Operator
from marctl.stack.state import DamagedState, State

ACTOR = "autoscaler"
REFUSED_S = 300.0
"""After a change that the stack took back, the version is left alone for so long."""
Rule = Callable[[Target, Load, Room], Decision]


@dataclass(frozen=True)
class Outcome:
    """What a look came to for one version."""

    key: Key
    before: int
    decision: Decision
    ready: int = 0
    done: str = ""
    """What became of a change: `revision 17`, or why it was not made; empty where none was due."""

    @property
    def changes(self) -> bool:
        return self.decision.workers != self.before

    @property
    def content(self) -> dict[str, Any]:
        """As one JSON object."""
        model, version = self.key
        decision = asdict(self.decision) | {"demand": round(self.decision.demand, 3)}
        return {
            "model": model,
            "version": version,
            "before": self.before,
            "ready": self.ready,
            **decision,
            "done": self.done,
        }

    def __str__(self) -> str:
        stay = "1 worker stays" if self.before == 1 else f"{self.before} workers stay"
        what = f"from {self.before} to {self.decision.workers} workers" if self.changes else stay
        done = f" ({self.done})" if self.done else ""
        return f"{' '.join(self.key)}: {what}{done}: {self.decision.reason}"


class Autoscaler:
    """Of one state folder. `dry_run`: decide and tell, and change nothing."""

    def __init__(
        self,
        state: State,
        settings: Settings,
        tell: Callable[[Outcome], None],
        *,
        dry_run: bool = False,
        rule: Rule = decide,
    ) -> None:
        """`tell` gets what changed, and why a version stays as it is whenever that reason becomes another one."""
        self.state = state
        self.settings = settings
        self._tell = tell
        self._dry_run = dry_run
        self._rule = rule
        self._stack: object = None
        self._watches: dict[Key, Watch] = {}
        self._told: dict[Key, str] = {}
        self._refused: dict[Key, float] = {}
        """Until when a version is left alone."""
        self._report = last_report(state)

    def run(self, ending: Event) -> None:
        """Until `ending` is set. Raises FollowsPlace where the state is changed elsewhere."""
        while True:
            began = time.monotonic()
            self.step()
            if ending.wait(max(self.settings.every_seconds - (time.monotonic() - began), 0.0)):
                return

    def once(self) -> None:
        """Two looks; what comes of the second one is told of every version."""
        self.step(quiet=True)
        time.sleep(self.settings.every_seconds)
        self._told.clear()
        self.step()

    def step(self, *, quiet: bool = False) -> list[Outcome]:
        """One look, and at most one change: the most urgent one. The others come with the next look."""
        refuse_following(self.state)
        revision = None
        with suppress(DamagedState, HistoryDamaged):  # whoever reconciles says so, and mends what can be mended
            revision = self._current()
        outcomes = list(self._outcomes(revision)) if revision is not None else []
        due = sorted((each for each in outcomes if each.changes), key=lambda each: each.before - each.decision.workers)
        done = self._change(due[0], revision) if due and revision is not None else None
        outcomes = [done if done is not None and each.key == done.key else each for each in outcomes]
        if not quiet:
            self._tell_news(outcomes, done)
        self._save(outcomes)
        return outcomes

    def _current(self) -> Revision | None:
        """The newest revision; None while it is brought into force, and where no stack runs."""
        running = self.state.running()
        if running is None or running.server is None or not running.server.alive:
            self._stack = None
            return None
        if self._stack != running.server:
            self._stack = running.server
            for watch in self._watches.values():
                watch.forget()
        revision = self.state.history.current()
        behind = self.state.reconciler() is None or self.state.status().observed < revision.revision
        return None if behind else revision

    def _outcomes(self, revision: Revision) -> Iterator[Outcome]:
        running = self.state.running()
        sample = look(running.metrics, time.monotonic()) if running is not None else None
        if sample is None:
            return
        chosen = dict(scaled(self.settings, revision.document))
        self._watches = {key: self._watches.get(key) or self._watch(key) for key in chosen}
        for key in chosen:
            if key in sample.versions:
                self._watches[key].see(sample.time_s, sample.versions[key])
        cores, free = limits.cores(), limits.available_bytes() - (self.settings.reserve_mb << 20)
        for key, objective in chosen.items():
            others = sum(watch.cores() for other, watch in self._watches.items() if other != key)
            one = self._watches[key].worker_bytes()
            room = Room(max(round(cores), 1), max(cores - others, 0.0), free, one, sample.gpu)
            yield self._outcome(key, objective, room, sample.time_s, revision.document)

    def _outcome(self, key: Key, objective: Objective, room: Room, now_s: float, document: Document) -> Outcome:
        watch, wanted = self._watches[key], workers_of(document, key)
        load = watch.load(wanted, objective.statistic, objective.hold_seconds)
        if load is None:
            return Outcome(key, wanted, Decision(wanted, 0.0, "unknown", "not enough has been seen yet"))
        if self._refused.get(key, 0.0) > now_s:
            reason = "the last change was taken back, so it is left alone for a while"
            return Outcome(key, wanted, Decision(wanted, 0.0, "unknown", reason), load.ready)
        decision = self._rule(objective.target(limits.cores()), load, room)
        watch.demanded(now_s, decision.demand)
        return Outcome(key, wanted, decision, load.ready)

    def _change(self, outcome: Outcome, revision: Revision) -> Outcome:
        """Declare it, and wait until it is in force."""
        if self._dry_run:
            return replace(outcome, done="dry run, nothing is changed")
        model, version = outcome.key
        command = f"autoscale {model} {version} {outcome.decision.workers}"
        operator = Operator(self.state, command, lambda _: None, actor=ACTOR, reason=outcome.decision.reason)
        began, watch = time.monotonic(), self._watches[outcome.key]
        self._save([outcome])
        try:
            change = operator.change(
                lambda document: with_workers(document, outcome.key, outcome.decision.workers),
                expected=revision.revision,
            )
        except Conflict:
            return replace(outcome, done="not done, the state was changed meanwhile")
        except UserError as err:
            if isinstance(err, Relayed):  # the stack took it back; otherwise nothing says that it would again
                self._refused[outcome.key] = time.monotonic() + REFUSED_S
            return replace(outcome, done=f"not done, {first_line(err)}")
        watch.begin_anew()
        if outcome.decision.workers > outcome.before:
            watch.start_s = time.monotonic() - began
        return replace(outcome, done=f"revision {change.revision.revision}")

    def _tell_news(self, outcomes: list[Outcome], done: Outcome | None) -> None:
        for each in outcomes:
            if each is done or self._told.get(each.key) != each.decision.kind:
                self._tell(each)
            self._told[each.key] = each.decision.kind

    def _watch(self, key: Key) -> Watch:
        known = self._report.of(*key)
        return Watch(start_s=known.start_s if known else None)

    def _save(self, outcomes: list[Outcome]) -> None:
        """The report. A full disk is no reason to stop."""
        if self._dry_run:
            return
        news = {each.key: self._scaled(each) for each in outcomes}
        others = [each for each in self._report.versions if (each.model, each.version) not in news]
        kept = [each for each in others if not outcomes or (each.model, each.version) in self._watches]
        self._report = AutoscalerReport(
            time.time(), sorted([*kept, *news.values()], key=lambda s: (s.model, s.version))
        )
        try:
            write_atomically(self.state.autoscaler_report, msgspec.json.encode(self._report))
        except WriteFailed:
            return

    def _scaled(self, outcome: Outcome) -> Scaled:
        before = self._report.of(*outcome.key)
        ups, downs, removed = (before.ups, before.downs, before.removed) if before else (0, 0, 0)
        grew = outcome.decision.workers - outcome.before if outcome.done.startswith("revision") else 0
        return Scaled(
            *outcome.key,
            wanted=outcome.decision.workers,
            ready=outcome.ready,
            kind=outcome.decision.kind,
            reason=outcome.decision.reason,
            demand=round(outcome.decision.demand, 3),
            start_s=self._watches[outcome.key].start_s,
            ups=ups + (grew > 0),
            downs=downs + (grew < 0),
            removed=removed + max(-grew, 0),
        )


def scaled(settings: Settings, document: Document) -> Iterator[tuple[Key, Objective]]:
    """Versions with workers of their own that are to be scaled; a parked one stays parked."""
    for model, version, content in document.versions():
        objective = settings.objective(model, version)
        if objective is not None and not content.shared and content.workers:
            yield (model, version), objective


def workers_of(document: Document, key: Key) -> int:
    content = document.find(*key)
    assert content is not None
    assert content.workers != "shared"
    return content.workers


def with_workers(document: Document, key: Key, workers: int) -> Document:
    content = document.find(*key)
    assert content is not None
    return document.with_version(*key, msgspec.structs.replace(content, workers=workers))


def first_line(err: UserError) -> str:
    return str(err).split("\n")[0]
