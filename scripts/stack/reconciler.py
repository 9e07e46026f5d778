"""Makes what runs equal to what is declared, one step after the other, and goes on doing so.

A revision that was never in force is taken back if any of it fails: its versions get no traffic before they have
answered their samples, and the former revision comes back as a further one, with the reason. What fails later, after a
restart or a death, is tried again; meanwhile the gateway leaves it out.

The reconciler may be killed at any point. Nothing that it started ends with it, and the next one finds what runs and
compares it with the document.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scripts.build.reader import Archive
from scripts.core.errors import UserError, short_name
from scripts.core.explainers import explainer_of, is_explainer
from scripts.core.files import WriteFailed
from scripts.core.process import Identity, StartFailed
from scripts.gateway.envoy import GatewayFailed
from scripts.stack import versions
from scripts.stack.backoff import Backoff
from scripts.stack.document import Document, Version
from scripts.stack.history import Conflict, HistoryDamaged, Revision
from scripts.stack.java import NoJava
from scripts.stack.management import Management, ManagementFailed, NoSuchVersion, Served
from scripts.stack.plan import TAKE_BACK
from scripts.stack.ports import PortTaken
from scripts.stack.report import KEPT_ANSWERS, KEPT_NOTES, Answer, Condition, Note, Status
from scripts.stack.routing import Key, Routing, routing
from scripts.stack.samples import ask_samples
from scripts.stack.servers import Servers
from scripts.stack.state import DamagedState, State
from scripts.stack.store import DIGEST_LENGTH, declared_archive
from scripts.stack.versions import Notify, Server

ACTOR = "reconciler"
CANNOT_START = (StartFailed, PortTaken, NoJava)
STEP_S = 0.05
"""How soon a new revision is noticed."""
WATCH_S = 0.25
LOOK_S = 0.5
"""How often TorchServe is asked about a version whose workers are not all there."""
COMPARE_S = 5.0
"""How often the gateway's files are compared with what Envoy has."""
DEATHS = 3
"""Of TorchServe, while a revision is brought into force, before that one is to blame."""
LOST_S = 60.0
"""After so long without a worker that was asked for, TorchServe has given up on it."""


class NothingServed(UserError):
    """A first start failed."""


class ServerGone(UserError):
    """TorchServe ended while it was needed."""


@dataclass(frozen=True)
class Watched:
    """A version's worker processes, for whoever looks after their health."""

    model: str
    version: str
    pids: tuple[int, ...]


HealthHook = Callable[[Sequence[Watched]], None]


@dataclass
class Found:
    """A version that is registered. `proved`: its workers are ready and it has answered its samples."""

    served: Served
    proved: bool = False
    trusted: bool = False
    """It was there with all its workers when this process began: it keeps its traffic until it has answered again."""
    workers: list[Identity] = field(default_factory=list)
    short_since: float | None = None
    """Since when it has fewer workers than asked for, by the monotonic clock."""
    looked: float = 0.0
    pushed: Backoff = field(default_factory=lambda: Backoff(LOST_S, 600.0))

    @classmethod
    def of(cls, served: Served, *, proved: bool = False, trusted: bool = False) -> Found:
        found = cls(served, proved, trusted)
        found.see(served)
        return found

    @property
    def answers(self) -> bool:
        """Whether requests may be sent to it: TorchServe would queue them for workers that are all dead."""
        manned = self.served.asked == 0 or any(identity.alive for identity in self.workers)
        return manned and (self.proved or self.trusted)

    @property
    def lost(self) -> bool:
        """Whether TorchServe has given up on a worker."""
        return self.short_since is not None and time.monotonic() - self.short_since > LOST_S

    def see(self, served: Served) -> None:
        self.served = served
        self.workers = [identity for pid in served.pids if (identity := Identity.of(pid))]
        if served.ready >= served.asked:
            self.short_since = None
        elif self.short_since is None:
            self.short_since = time.monotonic()


@dataclass(frozen=True)
class Wanted:
    """What is to be registered under a key."""

    model: str
    version: str
    content: Version
    explain: bool = False

    @property
    def key(self) -> Key:
        return explainer_of(self.model) if self.explain else self.model, self.version

    @property
    def workers(self) -> int:
        return (self.content.explainers or 0) if self.explain else self.content.workers

    @property
    def digest(self) -> str:
        return self.content.archive.removeprefix("sha256:")[:DIGEST_LENGTH]


def wanted(document: Document) -> dict[Key, Wanted]:
    """Predictions' workers first: they need not share the processor with those that explain while they load."""
    all_of = [Wanted(model, version, content) for model, version, content in document.versions()]
    all_of += [
        Wanted(model, version, content, explain=True)
        for model, version, content in document.versions()
        if content.explainers is not None
    ]
    return {each.key: each for each in all_of}


class Reconciler:
    """Follows one state folder's history."""

    def __init__(self, state: State, servers: Servers, notify: Notify, health: HealthHook | None = None) -> None:
        self.state = state
        self.servers = servers
        self._notify = notify
        self._health = health
        self._status = self._former_status()
        self._found: dict[Key, Found] | None = None
        self._conditions: dict[str, Condition] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._starts: dict[str, Backoff] = {}
        self._routing: Routing | None = None
        self._target: Revision | None = None
        self._deaths = 0
        self._dirty = True
        self._ready = servers.adopted
        """Whether it has served: what cannot be started from then on is tried again, and ends nothing."""
        self._watched = self._compared = 0.0
        self._stamp: object = None

    # The loop

    def run(self, ready: Callable[[], None]) -> None:
        """Until an exception ends it. `ready` is called once, when all that can be served is.

        Raises NothingServed if a first start fails, and whatever keeps a server from its start before that.
        """
        told = False
        while True:
            self._stamp = self.state.history.stamp()
            if self._pass() and not told:
                self._ready = told = True
                ready()
            self._rest()

    def _rest(self) -> None:
        """Until there is something to do; a moment at least."""
        with suppress(ServerGone):
            self.pause(STEP_S)
            while not self._due():
                self.pause(STEP_S)

    def _due(self) -> bool:
        changed = self.state.history.stamp() != self._stamp
        retry = self._backoffs and any(backoff.due for backoff in self._backoffs.values())
        return changed or self._dirty or bool(retry)

    def _pass(self) -> bool:
        """One comparison and its steps; whether the newest revision has its answer afterwards."""
        self._dirty = False
        try:
            revision = self.state.history.current()
        except HistoryDamaged as err:
            self._trouble("the history", err)
            return False
        if self._target is None or self._target.revision != revision.revision:
            self._target, self._deaths = revision, 0
            self._forget_troubles(revision.document)
        try:
            self._converge(revision)
        except CANNOT_START:
            if not self._ready:
                raise
            self._dirty = True
            return False
        except UserError as err:
            self._dirty = self._after(revision, err) or self._dirty
            return False
        self._well("the history", "the stack")
        self._answer(revision)
        return True

    def _forget_troubles(self, document: Document) -> None:
        """Everything is tried again at once, and what is not declared any more troubles nobody."""
        self._backoffs.clear()
        known = {"the history", "the stack", "TorchServe", "Envoy", "Redis", *map(named, wanted(document))}
        self._conditions = {what: condition for what, condition in self._conditions.items() if what in known}

    def _after(self, revision: Revision, err: UserError) -> bool:
        """What follows from a failure: try again at once, later, or take the revision back. Whether at once."""
        if not self.servers.torchserve_alive():
            self._found = None
            self._deaths += 1
            if self._deaths < DEATHS or not self._is_new(revision):
                self._trouble("TorchServe", err)
                return True
        elif isinstance(err, GatewayFailed) and not self.servers.envoy_alive():
            return True
        if self._is_new(revision):
            return self._take_back(revision, err)
        self._trouble("the stack", err)
        return False

    def _is_new_target(self) -> bool:
        return self._target is not None and self._is_new(self._target)

    def _is_new(self, revision: Revision) -> bool:
        """Whether there is a former revision to go back to, or none at all that was ever in force."""
        return revision.revision > self._status.in_force and revision.command != TAKE_BACK

    # One pass

    def _converge(self, revision: Revision) -> None:
        document = revision.document
        self._start_redis()
        if not self.servers.torchserve_alive():
            self._found = None
            self._start("TorchServe", self.servers.start_torchserve)
        if self._found is None:
            self._found = self._look()
        self._load(document, new=self._is_new(revision))
        if self._is_new(revision):
            self._check_newcomers(document)
        self._set_defaults(document)
        self._route(document)
        self._scale_down(document)
        self._unload(document)

    def _look(self) -> dict[Key, Found]:
        """What TorchServe has registered."""
        management = self._server().management
        found: dict[Key, Found] = {}
        for model in management.models():
            with suppress(NoSuchVersion):
                for served in management.versions(model):
                    there = Found.of(served, trusted=served.ready >= served.asked)
                    found[model, served.version] = there
        return found

    def _load(self, document: Document, *, new: bool) -> None:
        """Everything that is declared and not there, and more workers where there are too few; all side by side."""
        server, found = self._server(), self._all()
        logs = server.mark()
        if not new and self._routing:
            self._route(document)
        begun: list[tuple[Wanted, Archive]] = []
        for explain in (False, True):
            for each in wanted(document).values():
                if each.explain == explain and not self._as_wanted(each):
                    with self._blaming(each, document, new):
                        begun.append((each, self._begin(server, each)))
            for each, archive in begun:
                if each.explain == explain:
                    with self._blaming(each, document, new):
                        served = versions.prove(server, archive, logs, explain=explain)
                        found[each.key] = Found.of(served, proved=True)
                        self._well(named(each.key))
                        if not new:
                            self._route(document)

    def _as_wanted(self, each: Wanted) -> bool:
        """Whether nothing is to be done for it now."""
        found = self._all().get(each.key)
        backoff = self._backoffs.get(named(each.key))
        if backoff and not backoff.due:
            return True
        return bool(
            found and found.proved and found.served.digest == each.digest and found.served.asked >= each.workers
        )

    def _begin(self, server: Server, each: Wanted) -> Archive:
        """Registered and loading afterwards; a content that is not declared any more makes room for it."""
        store = Path(self.servers.running.store)
        archive = server.run(lambda: declared_archive(store, each.model, each.version, each.content))
        there = self._all().get(each.key)
        if there and there.served.digest != each.digest:
            self._replace(server, there)
            there = None
        if there is None:
            server.notify(f"{named(each.key)}: loading")
            versions.begin(server, archive, each.workers, explain=each.explain)
            self._all()[each.key] = Found.of(server.management.describe(*each.key))
        elif there.served.asked < each.workers:
            server.notify(f"{named(each.key)}: scaling to {each.workers}")
            server.management.scale(*each.key, each.workers)
        return archive

    def _replace(self, server: Server, there: Found) -> None:
        """TorchServe takes no second archive of a version. Others answer meanwhile, where there are others."""
        there.proved = there.trusted = False
        if self._target:
            self._route(self._target.document)
        versions.drain(server, there.served)
        self._remove(server, (there.served.model, there.served.version))

    @contextmanager
    def _blaming(self, each: Wanted, document: Document, new: bool) -> Iterator[None]:
        """A version that fails goes, unless it served before, with fewer workers, and goes on with those.

        A new revision fails with it, an old one goes on without.
        """
        before = self._all().get(each.key)
        served_before = before is not None and before.proved
        try:
            yield
        except UserError as err:
            if not self.servers.torchserve_alive():
                raise ServerGone(f"TorchServe ended while {named(each.key)} was loaded: {err}") from err
            there = self._all().get(each.key)
            if served_before and there is before and there is not None:
                there.see(self._server().management.describe(*each.key))
            else:
                self._leave_out(document, each.key)
            if new:
                raise
            self._trouble(named(each.key), err)

    def _leave_out(self, document: Document, key: Key) -> None:
        """First the routes, then the version."""
        if (there := self._all().get(key)) and not self._is_new_target():
            there.proved = there.trusted = False
            self._route(document)
        self._remove(self._server(), key)

    def _check_newcomers(self, document: Document) -> None:
        """Who is to get traffic and had none answers its samples once more. Raises SampleFailed."""
        had = self._routing[1] if self._routing else {}
        now = routing(document, self._answering(document))[1]
        server = self._server()
        for name, policy in now.items():
            before = had[name].split if name in had else {}
            for version in (v for v, weight in policy.split.items() if weight and not before.get(v)):
                found = self._all().get((name, version))
                if found and found.served.ready:
                    content = document.models[name].versions[version]
                    store, timeout_s = Path(self.servers.running.store), found.served.response_timeout_s
                    archive = server.run(lambda: declared_archive(store, name, version, content))  # noqa: B023
                    server.run(lambda: ask_samples(server.inference, archive, timeout_s))  # noqa: B023

    def _set_defaults(self, document: Document) -> None:
        """TorchServe's own, for those who ask it without a version."""
        management = self._server().management
        for name, model in document.models.items():
            there = (name, model.default) in self._all()
            if there and management.default_version(name) != model.default:
                management.set_default(name, model.default)

    def _route(self, document: Document) -> None:
        """The gateway's routes, to those versions alone that have proved themselves."""
        if self.servers.running.gateway is None:
            return
        now = routing(document, self._answering(document))
        if not self.servers.envoy_alive():
            self._start("Envoy", lambda: self.servers.start_envoy(*now))
        elif now != self._routing or not self.servers.envoy.in_force(*now):
            leaving = set(self._all()) - set(wanted(document))
            self.servers.envoy.apply(*now, keep=bool(leaving))
        self._routing, self._compared = now, time.monotonic()

    def _answering(self, document: Document) -> set[Key]:
        """What is declared, has proved itself and has the declared content."""
        declared = wanted(document)
        return {
            key
            for key, found in self._all().items()
            if found.answers and key in declared and found.served.digest == declared[key].digest
        }

    def _scale_down(self, document: Document) -> None:
        """After the routes: a version that is parked gets no more requests by then."""
        server = self._server()
        for key, each in wanted(document).items():
            found = self._all().get(key)
            if found and found.proved and found.served.asked > each.workers:
                found.see(versions.scale(server, *key, each.workers))

    def _unload(self, document: Document) -> None:
        """What is no longer declared, after the requests that wait for it."""
        server, leaving = self._server(), sorted(set(self._all()) - set(wanted(document)))
        leaving.sort(key=lambda key: not is_explainer(key[0]))
        for key in leaving:
            server.notify(f"{named(key)}: unregistering")
            versions.drain(server, self._all()[key].served)
            self._remove(server, key)
            self._well(named(key))
        if leaving:
            self._route(document)

    def _remove(self, server: Server, key: Key) -> None:
        """It may never have been registered; those that explain a version go before it."""
        for each in ((explainer_of(key[0]), key[1]), key):
            served = server.served(*each)
            if served is not None:
                versions.remove(server, served)
            self._all().pop(each, None)

    # Answers

    def _answer(self, revision: Revision) -> None:
        """The revision is in force, apart from what is being tried again."""
        former = self._status
        if revision.revision == former.observed == former.in_force and self._told() == former.conditions:
            return
        answers = dict(former.answers)
        if revision.revision > former.observed and revision.command != TAKE_BACK:
            answers[str(revision.revision)] = Answer("in force")
        reached = max(revision.revision, former.in_force)
        self._report(observed=revision.revision, in_force=reached, answers=dict(list(answers.items())[-KEPT_ANSWERS:]))

    def _take_back(self, revision: Revision, err: UserError) -> bool:
        """The former revision once more, as a further one; true, for it is to be brought into force at once."""
        former = self._status.in_force
        document = self.state.history.find(former).document if former else Document()
        try:
            self.state.history.commit(
                document, expected=revision.revision, actor=ACTOR, command=TAKE_BACK, reason=str(err)
            )
        except Conflict:
            return True
        except WriteFailed as full:
            self._trouble("the stack", full)
            return False
        failed = Answer("taken back", str(err), short_name(err))
        numbers = range(max(former, self._status.observed) + 1, revision.revision + 1)
        answers = self._status.answers | {str(number): failed for number in numbers}
        self._status = msgspec.structs.replace(self._status, answers=answers)
        self._notify(f"{revision.command}: taken back, {err}")
        if not former:
            raise NothingServed(str(err)) from err
        return True

    def _trouble(self, what: str, err: UserError) -> None:
        """Tell it once, and try again after a while."""
        backoff = self._backoffs.setdefault(what, Backoff(1.0, 60.0))
        backoff.tried()
        known = self._conditions.get(what)
        if known is None or known.reason != str(err):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._conditions[what] = Condition(what, str(err), now)
            self.notify(f"warning: {what}: {err}")

    def _well(self, *names: str) -> None:
        for name in names:
            self._backoffs.pop(name, None)
            if self._conditions.pop(name, None):
                self.notify(f"{name} is well again")

    def _told(self) -> list[Condition]:
        return [self._conditions[name] for name in sorted(self._conditions)]

    def notify(self, text: str) -> None:
        """To whoever started this process, and to the commands that wait."""
        self._notify(text)
        number = self._status.notes[-1].number + 1 if self._status.notes else 1
        self._report(notes=[*self._status.notes[-KEPT_NOTES:], Note(number, text)])

    def _report(self, **changes: object) -> None:
        """A disk that is full must not end what runs."""
        self._status = msgspec.structs.replace(self._status, conditions=self._told(), **changes)
        with suppress(WriteFailed):
            self.state.save_status(self._status)

    def _former_status(self) -> Status:
        try:
            status = self.state.status()
        except DamagedState as err:
            self._notify(f"warning: {err}")
            return Status()
        return msgspec.structs.replace(status, conditions=[])

    # Waiting and watching

    def pause(self, seconds: float) -> None:
        """Sleep, and look after the processes meanwhile. Raises ServerGone if TorchServe has ended under a step."""
        deadline = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if now - self._watched >= WATCH_S:
                self._watched = now
                self._watch()
            if now >= deadline:
                return
            time.sleep(min(STEP_S, deadline - now))

    def wait(self, function: Callable[[], object]) -> object:
        """Call a function that blocks, and watch meanwhile."""
        outcome: list[object] = []
        failure: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(function())
            except BaseException as err:
                failure.append(err)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(STEP_S)
            self.pause(0)
        if failure:
            raise failure[0]
        return outcome[0]

    def _watch(self) -> None:
        """Four times a second, and cheap: no call of TorchServe unless a worker has ended."""
        if self._health is not None:
            self._health(self._watched_versions())
        self._revive_redis()
        self._revive_envoy()
        if self._found is not None and not self.servers.torchserve_alive():
            self._found = None
            self._dirty = True
            raise ServerGone("TorchServe has ended")
        self._watch_workers()
        if self._routing and time.monotonic() - self._compared > COMPARE_S:
            self._compared = time.monotonic()
            self._dirty = self._dirty or not self.servers.envoy.in_force(*self._routing)

    def _watched_versions(self) -> list[Watched]:
        return [
            Watched(*key, tuple(identity.pid for identity in found.workers))
            for key, found in (self._found or {}).items()
        ]

    def _watch_workers(self) -> None:
        """TorchServe starts workers that ended again, and gives up after some minutes."""
        for key, found in list((self._found or {}).items()):
            well = found.short_since is None and all(identity.alive for identity in found.workers)
            if well or time.monotonic() - found.looked < LOOK_S:
                continue
            found.looked = time.monotonic()
            try:
                served = self._server().served(*key)
            except ManagementFailed:
                return
            if served is None or served.asked != found.served.asked:  # somebody went past the document
                self._dirty = True
                found.proved = found.trusted = False
                if served is None:
                    del self._all()[key]
                    continue
            before, answered = found.served.ready, found.answers
            found.see(served)
            self._dirty = self._dirty or found.answers != answered or served.ready != before
            if found.proved and served.ready != before:
                self.notify(f"{served}: {served.ready} of {served.asked} workers ready; log: {self.state.workers_log}")
            if (
                found.proved
                and found.short_since
                and time.monotonic() - found.short_since > LOST_S
                and found.pushed.due
            ):
                found.pushed.tried()
                self._server().management.scale(*key, served.asked)

    def _start_redis(self) -> None:
        """Predictions go on without it, so its failure is a condition."""
        if self.servers.redis_alive():
            return
        backoff = self._backoffs.get("Redis")
        if backoff and not backoff.due:
            return
        try:
            self.servers.start_redis()
        except UserError as err:
            self._trouble("Redis", err)
        else:
            self._well("Redis")

    def _revive_redis(self) -> None:
        redis = self.servers.running.redis
        if redis is None or redis.process is None or self.servers.redis_alive():
            return
        self._start_redis()
        now = self.servers.running.redis
        if now is not None and now != redis:
            self.notify(
                f"Redis (pid {redis.pid}) had died and was started again, pid {now.pid}; cached answers are gone"
            )

    def _revive_envoy(self) -> None:
        """At once, with the routes that it had."""
        if self._routing is None or self.servers.envoy_alive():
            return
        backoff = self._backoffs.get("Envoy")
        if backoff and not backoff.due:
            return
        routes = self._routing
        try:
            self.servers.start_envoy(*routes)
        except UserError as err:
            self._trouble("Envoy", err)
        else:
            self._well("Envoy")
            self.notify("Envoy had died and was started again")

    def _start(self, what: str, start: Callable[[], None]) -> None:
        """At once the first time, then after ever longer waits."""
        backoff = self._starts.setdefault(what, Backoff())
        while not backoff.due:
            self.pause(STEP_S)
        backoff.tried()
        try:
            start()
        except UserError as err:
            self._trouble(what, err)
            raise
        self._well(what)

    def _server(self) -> Server:
        running = self.servers.running
        return Server(
            management=Management(running.management),
            inference=running.inference,
            unpacked=Path(running.temp) / "archives",
            server_log=self.state.server_log,
            workers_log=self.state.workers_log,
            notify=self.notify,
            pause=self.pause,
            wait=self.wait,
        )

    def _all(self) -> dict[Key, Found]:
        """Everything that is registered; raises ServerGone where there is no server by now."""
        if self._found is None:
            raise ServerGone("TorchServe has ended")
        return self._found


def named(key: Key) -> str:
    """`mcqa 2.0`."""
    return " ".join(key)
