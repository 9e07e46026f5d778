"""What can be done to a stack: functions that change the declared state, and wait until the reconciler has answered.

Commands call them, and so can anything else. Where no stack runs they change the document alone.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from marctl.build.reader import read_archive
from marctl.core.errors import Relayed, UserError
from marctl.core.explainers import SUFFIX, is_explainer
from marctl.core.files import WriteFailed, refuse_full
from marctl.core.order import version_order
from marctl.gateway.policies import STALE, Traffic, TrafficInvalid, cures, place
from marctl.gateway.policies import check as check_traffic
from marctl.stack.document import Declared, Document, DocumentInvalid, Model, Version, refuse_faults
from marctl.stack.follow import refuse_following
from marctl.stack.history import Conflict, Revision
from marctl.stack.plan import TAKE_BACK, declared
from marctl.stack.report import Answer, Status
from marctl.stack.state import DamagedState, State
from marctl.stack.store import missing, put
from marctl.stack.versions import Notify

POLL_S = 0.02
SPARE_BYTES = 1 << 20
"""Free on the disk before a change begins: its answer and the gateway's files need room, too."""
SUCCESSOR_S = 5.0
"""A service manager starts the reconciler again if it was killed; so long a command waits for the next one."""
SLOW_S = 10.0
"""After so long without news, a command says what it waits for."""

Edit = Callable[[Document], Document]


class NoSuchVersion(UserError):
    """The document has no such model, or not in this version."""


class NotReady(UserError):
    """A version cannot take the place that it was meant to take."""


class NoGateway(UserError):
    """The stack was started with --no-gateway."""


class NotFollowed(UserError):
    """A change is declared, and nobody makes it so."""


@dataclass(frozen=True)
class Change:
    """A change that is declared. `followed`: a reconciler has made it so; otherwise the next start will."""

    revision: Revision
    followed: bool

    @property
    def document(self) -> Document:
        return self.revision.document


@dataclass(frozen=True)
class Operator:
    """Who changes which stack, by what command and why."""

    state: State
    command: str
    notify: Notify
    actor: str = ""
    reason: str = ""

    def change(self, edit: Edit, *, expected: int | None = None) -> Change:
        """Declare what `edit` makes of the document, and wait for the answer.

        It waits for its turn while another change is brought into force. `edit` may raise; its document is checked.
        Raises FollowsPlace where the state is changed elsewhere, Conflict if `expected` is not the newest revision,
        DocumentInvalid, WriteFailed, NotFollowed, and Relayed with the reason if the reconciler took the change back.
        """
        refuse_following(self.state)
        while True:
            before = self._wait_for_turn()
            if expected is not None and before.revision != expected:
                raise Conflict(f"the state was changed since revision {expected}: {before}; look, and try again")
            document = edit(before.document)
            refuse_faults(document, "the declared state would have")
            if document == before.document:
                return Change(before, followed=self.state.reconciler() is not None)
            refuse_full(self.state.folder, SPARE_BYTES)
            try:
                revision = self.state.history.commit(
                    document,
                    expected=before.revision,
                    actor=self.actor or getpass.getuser(),
                    command=self.command,
                    reason=self.reason,
                )
            except Conflict:
                if expected is not None:
                    raise
                continue
            return Change(revision, followed=self._follow(revision))

    def _wait_for_turn(self) -> Revision:
        """The newest revision, once the reconciler has answered it."""
        told = 0
        while True:
            newest = self.state.history.current()
            if self.state.reconciler() is None or self._status().observed >= newest.revision:
                return newest
            if told != newest.revision:
                told = newest.revision
                self.notify(f"waiting for {newest}")
            time.sleep(POLL_S)

    def _follow(self, revision: Revision) -> bool:
        """Tell the reconciler's progress until it has answered; False if there is none and nothing runs."""
        if self.state.reconciler() is None and self.state.running() is None:
            return False
        seen = max((note.number for note in self._status().notes), default=0)
        news = alive = time.monotonic()
        while True:
            status, now = self._status(), time.monotonic()
            for note in status.notes:
                if note.number > seen:
                    seen, news = note.number, now
                    self.notify(note.text)
            if status.observed >= revision.revision:
                refuse_taken_back(self.state, revision, status)
                return True
            alive = now if self.state.reconciler() else alive
            if now - alive > SUCCESSOR_S:
                raise NotFollowed(not_followed(self.state, revision))
            if now - news > SLOW_S:
                news = now
                self._say_what_it_waits_for(revision)
            time.sleep(POLL_S)

    def _status(self) -> Status:
        """A damaged report is written anew by the reconciler."""
        try:
            return self.state.status()
        except DamagedState:
            return Status()

    def _say_what_it_waits_for(self, revision: Revision) -> None:
        self.notify(f"still waiting for revision {revision.revision}; log: {self.state.reconciler_log}")
        try:
            refuse_full(self.state.folder, SPARE_BYTES)
        except WriteFailed as err:
            self.notify(f"no answer can be written: {err}")


def refuse_taken_back(state: State, revision: Revision, status: Status) -> None:
    """Raise Relayed with the reason if the reconciler undid a revision."""
    answer = answer_to(state, revision, status.answers.get(str(revision.revision)))
    if answer.outcome == "taken back":
        raise Relayed(answer.error or "taken_back", answer.reason)


def not_followed(state: State, revision: Revision) -> str:
    return (
        f"revision {revision.revision} is declared, and the process that would follow it has ended; "
        f"`marctl up --state {state.folder}` takes over what runs and goes on"
    )


def answer_to(state: State, revision: Revision, answer: Answer | None) -> Answer:
    """A reconciler that was killed may not have written what became of a revision; the history still tells."""
    if answer is not None:
        return answer
    for later in state.history.revisions():
        if later.revision > revision.revision and later.command == TAKE_BACK:
            return Answer("taken back", later.reason)
    return Answer("in force")


def register(
    operator: Operator, archive: Path, store: Path, *, workers: int | None, make_default: bool, force: bool
) -> tuple[Change, str, str]:
    """Serve one more version: its archive goes into the store, and out again if it fails. Returns its names, too."""
    refuse_following(operator.state)
    given, trust = read_archive(archive), operator.state.trust()
    if trust is not None:
        trust.check(archive, given.statement)
    refuse_declared(operator.state.history.current().document, given.name, given.version)
    with put(given, store, force=force) as stored:
        version = declared(stored, workers)

        def edit(document: Document) -> Document:
            refuse_declared(document, stored.name, stored.version)
            before = document.models.get(stored.name)
            default = stored.version if before is None or make_default else before.default
            versions = {**(before.versions if before else {}), stored.version: version}
            model = Model(default=default, versions=versions, traffic=before.traffic if before else None)
            return document.with_model(stored.name, model)

        # What is declared keeps its archive, whoever stops waiting for it.
        unfinished: BaseException | None = None
        try:
            return operator.change(edit), stored.name, stored.version
        except (NotFollowed, KeyboardInterrupt) as err:
            unfinished = err
    raise unfinished


def refuse_declared(document: Document, model: str, version: str) -> None:
    there = document.find(model, version)
    if there:
        raise UserError(
            f"{model} {version} is registered already, from {there.file}; give the archive another version, "
            f"or replace it: marctl unregister {model} {version}, then register again"
        )


def scale(operator: Operator, model: str, version: str, workers: int) -> Change:
    """So many workers; `mcqa-explain` names those that explain mcqa. None at all is for a version that nobody asks."""

    def edit(document: Document) -> Document:
        name = model.removesuffix(SUFFIX)
        content = the_version(document, name, version)
        if is_explainer(model):
            if content.explainers is None:
                raise NoSuchVersion(
                    f"{name} {version} has no explainer workers. Add `explanations: {{workers: 1}}` to its recipe, "
                    "rebuild, register"
                )
            return document.with_version(name, version, msgspec.structs.replace(content, explainers=workers))
        refuse_shared(name, version, content)
        if workers == 0:
            refuse_parking(document.models[name], name, version)
        return document.with_version(name, version, msgspec.structs.replace(content, workers=workers))

    return operator.change(edit)


def refuse_shared(model: str, version: str, content: Version) -> None:
    """Raise NotReady for a version without workers of its own."""
    if content.shared:
        raise NotReady(
            f"{model} {version} is in a shared worker and has none of its own. For more shared workers: `shared: "
            "{workers: N}` by `marctl state edit`; for workers of its own: `workers: N` in the place of "
            f"`workers: shared`, there or in its recipe"
        )


def refuse_parking(model: Model, name: str, version: str) -> None:
    """Raise NotReady if a version without workers would leave requests unanswered."""
    if version == model.default:
        raise NotReady(
            f"{name} {version} is the default version of {name} and must keep a worker; "
            f"first make another one the default: marctl default {name} VERSION"
        )
    if model.traffic is not None and version in model.traffic.versions:
        raise NotReady(
            f"{name} {version} has {place(model.traffic, version)} and must keep a worker; "
            f"first take it out: {', '.join(cures(name, model.traffic, version))}"
        )


def make_default(operator: Operator, model: str, version: str) -> Change:
    """The version that answers when a client names none; it answers its samples first."""
    refuse_explainer(model)

    def edit(document: Document) -> Document:
        if the_version(document, model, version).workers == 0:
            raise NotReady(
                f"{model} {version} has no worker; the default stays {document.models[model].default}. "
                f"Start workers: marctl scale {model} {version} 1"
            )
        return document.with_model(model, msgspec.structs.replace(document.models[model], default=version))

    return operator.change(edit)


def unregister(operator: Operator, model: str, version: str, *, force: bool) -> Change:
    """Stop serving a version after the requests that wait for it; its archive stays in the store."""
    refuse_explainer(model)

    def edit(document: Document) -> Document:
        the_version(document, model, version)
        there = document.models[model]
        if version == there.default and len(there.versions) > 1:
            raise NotReady(
                f"{model} {version} is the default version of {model}, and others are registered; "
                f"first make another one the default: marctl default {model} VERSION"
            )
        traffic = there.traffic
        if traffic is not None and version in {*traffic.split, *traffic.shadow, *traffic.stand_ins}:
            if version in traffic.versions and not force:
                raise NotReady(
                    f"{model} {version} has {place(traffic, version)}; first take it out: "
                    f"{', '.join(cures(model, traffic, version))}; or all at once: marctl unregister {model} "
                    f"{version} --force"
                )
            traffic = traffic.without(version)
        if traffic is not None and STALE in traffic.fallback and len(there.versions) == 2:
            operator.notify(f"{model}: `{STALE}` leaves the fallback list; a lone version has no reader for it")
            traffic = msgspec.structs.replace(traffic, fallback=traffic.stand_ins)
        document = document.with_model(model, msgspec.structs.replace(there, traffic=traffic))
        return document.with_version(model, version, None)

    return operator.change(edit)


def set_traffic(operator: Operator, policies: Mapping[str, Traffic]) -> Change:
    """Models that are not named keep theirs. Raises TrafficInvalid."""
    require_gateway(operator.state)

    def edit(document: Document) -> Document:
        served = {name: list(model.versions) for name, model in document.models.items()}
        for name, policy in policies.items():
            check_traffic(name, policy, served)
            refuse_parked(document.models[name], name, policy)
            document = document.with_model(name, msgspec.structs.replace(document.models[name], traffic=policy))
        return document

    return operator.change(edit)


def change_traffic(operator: Operator, model: str, changes: Mapping[str, Any] | None) -> Change:
    """Replace fields of a model's policy; None forgets the policy. Raises TrafficInvalid."""
    require_gateway(operator.state)

    def edit(document: Document) -> Document:
        there = the_model(document, model)
        if changes is None:
            return document.with_model(model, msgspec.structs.replace(there, traffic=None))
        policy = msgspec.structs.replace(there.policy, **changes)
        if changes.get("fallback"):
            refuse_standing_in_for_itself(model, policy)
        check_traffic(model, policy, {name: list(each.versions) for name, each in document.models.items()})
        refuse_parked(there, model, policy)
        return document.with_model(model, msgspec.structs.replace(there, traffic=policy))

    return operator.change(edit)


def refuse_standing_in_for_itself(model: str, policy: Traffic) -> None:
    """Raise TrafficInvalid for a fallback list of which no routed version has any use.

    A change of the split alone may leave one so: in an emergency it must not be refused.
    """
    routed = [version for version, weight in policy.split.items() if weight]
    if routed and not any(policy.fallbacks_after(version) for version in routed):
        raise TrafficInvalid(
            f"{model} {' and '.join(routed)} cannot stand in for {'itself' if len(routed) == 1 else 'themselves'}, and "
            f"no other version comes after in the list; name one that has no share, or `stale`"
        )


def refuse_parked(model: Model, name: str, policy: Traffic) -> None:
    """Raise NotReady if a version that is to answer has nobody to do it."""
    for version in policy.versions:
        if model.versions[version].workers == 0:
            raise NotReady(f"{name} {version} has no worker; start one: marctl scale {name} {version} 1")


def require_gateway(state: State) -> None:
    running = state.running()
    if running is not None and running.gateway is None:
        raise NoGateway("this stack runs without a gateway; start it with `marctl up`, without --no-gateway")


def apply(operator: Operator, declared_: Declared) -> Change:
    """The whole document; onto the revision that it names, if it names one."""
    refuse_following(operator.state)
    document = declared_.document
    refuse_missing(operator.state.history.current().document, document, operator.state)
    return operator.change(lambda _: document, expected=declared_.revision)


def rollback(operator: Operator, revision: int | None) -> Change:
    """The document of a former revision once more; by default of the one before the last change."""
    refuse_following(operator.state)
    history = operator.state.history
    newest = history.current()
    if newest.revision == 0:
        raise UserError("nothing is declared yet")
    former = history.find(max(newest.revision - 1, 1) if revision is None else revision)
    refuse_missing(newest.document, former.document, operator.state)
    return operator.change(lambda _: former.document, expected=newest.revision)


def refuse_missing(before: Document, after: Document, state: State) -> None:
    """Raise DocumentInvalid if the store lacks what would have to be loaded, holds another content of it, or one that
    nobody trusted has signed. Where no stack runs, its next start looks.
    """
    running = state.running()
    if running is not None and (lacking := missing(before, after, Path(running.store), state.trust())):
        raise DocumentInvalid("\n  ".join(["the store lacks what this document declares:", *lacking]))


def the_model(document: Document, model: str) -> Model:
    """Raises NoSuchVersion."""
    if model not in document.models:
        there = ", ".join(sorted(document.models)) or "none"
        raise NoSuchVersion(f"no model {model} is served; there are: {there}")
    return document.models[model]


def the_version(document: Document, model: str, version: str) -> Version:
    """Raises NoSuchVersion."""
    there = the_model(document, model)
    if version not in there.versions:
        names = ", ".join(sorted(there.versions, key=version_order))
        raise NoSuchVersion(f"{model} has no version {version}; there are: {names}")
    return there.versions[version]


def refuse_explainer(model: str) -> None:
    """Workers that explain follow their model; only their number is the operator's."""
    if is_explainer(model):
        raise UserError(
            f"{model} is what explains {model.removesuffix(SUFFIX)}, and goes with its versions; "
            f"to stop it alone: marctl scale {model} VERSION 0"
        )
