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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from marctl.build.reader import Archive
from marctl.core.errors import UserError, short_name
from marctl.core.explainers import is_explainer
from marctl.core.files import WriteFailed
from marctl.core.process import StartFailed
from marctl.core.shared import address, is_shared
from marctl.gateway.envoy import GatewayFailed
from marctl.gateway.health import Health, Workers, routed
from marctl.signing.trust import NotTrusted, Revoked, Stamp
from marctl.stack import shared, versions
from marctl.stack.backoff import Backoff
from marctl.stack.companions import NAMES as COMPANIONS
from marctl.stack.companions import Companions
from marctl.stack.document import Document
from marctl.stack.history import Conflict, HistoryDamaged, Revision
from marctl.stack.inventory import Inventory, ServerGone
from marctl.stack.java import NoJava
from marctl.stack.journal import Journal
from marctl.stack.loading import Loading, explainers_to_come
from marctl.stack.management import Management, ManagementFailed
from marctl.stack.plan import TAKE_BACK
from marctl.stack.ports import PortTaken
from marctl.stack.registered import Found, Wanted, named, wanted
from marctl.stack.report import Answer
from marctl.stack.routing import Key, Routing, routing
from marctl.stack.samples import ask_samples
from marctl.stack.secrets import SECRETS, Secrets
from marctl.stack.servers import Servers
from marctl.stack.state import DamagedState, State
from marctl.stack.store import declared_archive
from marctl.stack.versions import Notify, Server
from marctl_handlers.torchserve.heartbeat import FOLDER as HEARTBEATS

ACTOR = "reconciler"
CANNOT_START = (StartFailed, PortTaken, NoJava)
HISTORY, STACK, TORCHSERVE, ENVOY = "the history", "the stack", "TorchServe", "Envoy"
STEP_S = 0.05
"""How soon a new revision is noticed."""
WATCH_S = 0.25
LOOK_S = 0.5
"""How often TorchServe is asked about a version whose workers are not all there."""
COMPARE_S = 5.0
"""How often the gateway's files are compared with what Envoy has, and the trusted keys with what they were."""
NOBODY_ASKED: tuple[str, Stamp] = ("", ())
"""In place of a folder of trusted keys, where archives need no signature."""
GOING_S = 0.5
DEATHS = 3
"""Of TorchServe, while a revision is brought into force, before that one is to blame."""


class NothingServed(UserError):
    """A first start failed."""


class Reconciler:
    """Follows one state folder's history."""

    def __init__(self, state: State, servers: Servers, notify: Notify, *, follows: bool = False) -> None:
        """`follows`: further revisions come by themselves, so that a first one that fails ends nothing."""
        self.state = state
        self._follows = follows
        self.servers = servers
        self.journal = Journal(state, notify)
        self._health = Health(state.gateway, servers.envoy.hosts, Path(servers.running.temp) / HEARTBEATS)
        self._inventory = Inventory()
        self._companions = Companions(servers, self.journal)
        self._secrets = Secrets(servers, self.journal)
        self._starts: dict[str, Backoff] = {}
        self._routing: Routing | None = None
        """What the gateway was told last."""
        self._trusted_as: tuple[str, Stamp] | None = None
        """The trusted keys when what runs was compared with them last; None before."""
        self._target: Revision | None = None
        self._deaths = 0
        self._shown: set[tuple[str, str]] = set()
        """Shared worker and digest of each version that answered its samples there: after a death it need not again."""
        self._dirty = True
        """Whether something is to be done at once."""
        self._ready = servers.adopted
        """Whether it has served: what cannot be started from then on is tried again, and ends nothing."""
        self._watched = self._compared = self._trust_seen = 0.0
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
            while not (self._dirty or self.journal.retry_due or self.state.history.stamp() != self._stamp):
                self.pause(STEP_S)

    def _pass(self) -> bool:
        """One comparison and its steps; whether the newest revision is in force afterwards."""
        self._dirty = False
        try:
            revision = self.state.history.current()
        except HistoryDamaged as err:
            self.journal.trouble(HISTORY, err)
            return False
        if self._target is None or self._target.revision != revision.revision:
            self._target, self._deaths = revision, 0
            known = {HISTORY, STACK, TORCHSERVE, ENVOY, SECRETS}
            self.journal.begin(known | COMPANIONS | {named(key) for key in wanted(revision.document)})
        try:
            self._converge(revision.document)
        except CANNOT_START:
            if not self._ready:
                raise
            self._dirty = True
            return False
        except UserError as err:
            self._dirty = self._after(revision, err) or self._dirty
            return False
        self.journal.well(HISTORY, STACK)
        self.journal.in_force_now(revision.revision, asked=revision.command != TAKE_BACK)
        return True

    @property
    def _is_new(self) -> bool:
        """Whether there is a former revision to go back to, or none at all that was ever in force."""
        target = self._target
        return target is not None and target.revision > self.journal.in_force and target.command != TAKE_BACK

    def _after(self, revision: Revision, err: UserError) -> bool:
        """What follows from a failure: take the revision back, or try again. Whether at once."""
        if self._server_gone():
            self._inventory.forget()
            self._deaths += 1
            if self._deaths < DEATHS or not self._is_new:
                self.journal.trouble(TORCHSERVE, err)
                return True
        elif isinstance(err, GatewayFailed) and not self.servers.envoy_alive():
            return True
        if self._is_new:
            return self._take_back(revision, err)
        self.journal.trouble(STACK, err)
        return False

    def _server_gone(self) -> bool:
        """After a failure: a process that is killed stops answering a moment before it is gone."""
        deadline = time.monotonic() + GOING_S
        while self.servers.torchserve_alive() and time.monotonic() < deadline:
            time.sleep(STEP_S)
        return not self.servers.torchserve_alive()

    def _take_back(self, revision: Revision, err: UserError) -> bool:
        """The former revision once more, as a further one; true, for it is to be brought into force at once."""
        former = self.journal.in_force
        document = self.state.history.find(former).document if former else Document()
        try:
            self.state.history.commit(
                document, expected=revision.revision, actor=ACTOR, command=TAKE_BACK, reason=str(err)
            )
        except Conflict:
            return True
        except WriteFailed as full:
            self.journal.trouble(STACK, full)
            return False
        failed = Answer("taken back", str(err), short_name(err))
        self.journal.taken_back(revision.revision, failed, f"{revision.command}: taken back, {err}")
        if not former and not self._follows:
            raise NothingServed(str(err)) from err
        return True

    # One pass

    def _converge(self, document: Document) -> None:
        self._companions.start_redis()
        if not self.servers.torchserve_alive():
            self._inventory.forget()
            self._tell_health()  # or requests would reach a server that has no version yet, and be told 404
            self._start(TORCHSERVE, self.servers.start_torchserve)
        if not self._inventory.known:
            self._inventory.look(self._server())
        loading = self._loading(document)
        self._look_at_trust(loading)
        if not self._is_new and self._routing:
            self._route(document)
        loading.load(explain=False)
        if self._routing is None and explainers_to_come(document, self._inventory, self.journal):
            self._open_early(document)
        loading.load(explain=True)
        if self._is_new:
            self._check_newcomers(document)
        self._set_defaults(document)
        self._route(document)
        self._scale_down(document)
        self._unload(document)

    def _loading(self, document: Document) -> Loading:
        server = self._server()
        return Loading(
            document=document,
            is_new=self._is_new,
            server=server,
            inventory=self._inventory,
            journal=self.journal,
            read=lambda each: self._archive(server, each),
            route=lambda: self._route(document),
            gone=self._server_gone,
            shown=self._shown,
        )

    def _archive(self, server: Server, each: Wanted) -> Archive:
        """Read and checked; it takes a second for some hundred megabytes."""
        store = Path(self.servers.running.store)
        trust = self.state.trust()
        return server.run(lambda: declared_archive(store, each.model, each.version, each.content, trust))

    def _look_at_trust(self, loading: Loading) -> None:
        """After a change of the trusted keys, whether what runs may go on.

        What is revoked goes at once. A key that is only gone may be so by mistake: nothing more that it signed is
        loaded, and what runs goes on; a process that begins to reconcile lets none of it go on.
        """
        stamp = self._trust_stamp()
        if stamp == self._trusted_as:
            return
        begins, self._trusted_as = self._trusted_as is None, stamp
        if stamp == NOBODY_ASKED:
            return
        for each in wanted(loading.document).values():
            if each.key not in self._inventory.all:
                self.journal.try_now(named(each.key))
                continue
            try:
                loading.read(each)
            except NotTrusted as err:
                if begins or isinstance(err, Revoked):
                    loading.leave_out(each.key)
                    self.journal.trouble(named(each.key), err)
                else:
                    self.journal.warn(named(each.key), err)
            except UserError as err:
                self.journal.warn(named(each.key), err)
            else:
                self.journal.well(named(each.key))

    def _trust_stamp(self) -> tuple[str, Stamp]:
        """Which folder of keys counts, and as what it looks."""
        try:
            trust = self.state.trust()
        except DamagedState:
            return "damaged", ()
        return NOBODY_ASKED if trust is None else (str(trust.folder), trust.stamp())

    def _open_early(self, document: Document) -> None:
        """At a start predictions are served while the workers that explain still load."""
        if self._is_new:
            self._check_newcomers(document)
        self._set_defaults(document)
        self._route(document)
        gateway = self.servers.running.gateway
        self.journal.note(f"predictions are served{f' at {gateway.address}' if gateway else ''}; explainers still load")

    def _check_newcomers(self, document: Document) -> None:
        """Who is to get traffic and had none answers its samples once more. Raises SampleFailed."""
        had = self._routing[1] if self._routing else {}
        server = self._server()
        for name, policy in routing(document, self._answering(document))[1].items():
            before = had[name].split if name in had else {}
            for version in (v for v, weight in policy.split.items() if weight and not before.get(v)):
                found = self._inventory.all.get((name, version))
                if found and found.served.ready:
                    self._ask(server, Wanted(name, version, document.models[name].versions[version]), found)

    def _ask(self, server: Server, each: Wanted, found: Found) -> None:
        archive = self._archive(server, each)
        at = address(found.worker, each.model, each.version) if found.member else ""
        server.run(lambda: ask_samples(server.inference, archive, found.served.response_timeout_s, at))

    def _set_defaults(self, document: Document) -> None:
        server = self._server()
        for name, model in document.models.items():
            self._inventory.set_default(server, name, model.default)

    def _route(self, document: Document) -> None:
        """The gateway's routes, to those versions alone that have proved themselves."""
        if self.servers.running.gateway is None:
            return
        to_come = explainers_to_come(document, self._inventory, self.journal)
        now = routing(document, self._answering(document), self._inventory.addresses(), to_come)
        if not self.servers.envoy_alive():
            self._start(ENVOY, lambda: self.servers.start_envoy(*now))
        elif now != self._routing or not self.servers.envoy.in_force(*now):
            leaving = set(self._inventory.all) - set(wanted(document))
            self.servers.envoy.apply(*now, keep=bool(leaving))
        self._routing, self._compared = now, time.monotonic()
        self._tell_health()  # whoever is told next that all is ready may ask at once

    def _answering(self, document: Document) -> set[Key]:
        """What is declared, has proved itself and has the declared content."""
        declared, found = wanted(document), self._inventory.all
        return {key for key, there in found.items() if key in declared and self._may_answer(declared[key], there)}

    def _may_answer(self, each: Wanted, found: Found) -> bool:
        """A version whose workers have all died keeps its share where another one stands in for it: the gateway
        sends its requests there at once, and tells so. Where nobody does, others of the split get them."""
        model = self._target.document.models.get(each.model) if self._target else None
        policy = model.policy if model else None
        stood_in_for = bool(policy and policy.fallbacks_after(each.version))
        known = found.served.digest == each.digest and (found.proved or found.trusted)
        return known and (found.manned or stood_in_for)

    def _scale_down(self, document: Document) -> None:
        """After the routes: a version that is parked gets no more requests by then."""
        server = self._server()
        for key, each in wanted(document).items():
            found = self._inventory.all.get(key)
            if found and found.proved and not found.member and found.served.asked > each.workers:
                found.see(versions.scale(server, *key, each.workers))

    def _unload(self, document: Document) -> None:
        """What is no longer declared, after the requests that wait for it; then shared workers without a version."""
        server = self._server()
        leaving = {key for key in self._inventory.all if not is_shared(key[0])} - set(wanted(document))
        for key in sorted(leaving, key=lambda key: (not is_explainer(key[0]), key)):
            server.notify(f"{named(key)}: unregistering")
            self._inventory.drain(server, self._inventory.all[key])
            self._inventory.remove(server, key)
            self.journal.well(named(key))
        for key in [key for key in self._inventory.all if is_shared(key[0]) and not self._inventory.members(key[0])]:
            versions.drain(server, self._inventory.all[key].served)
            self._inventory.remove(server, key)
        if leaving:
            self._route(document)

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
        self._tell_health()
        self._companions.watch(serving=self._ready)
        self._revive_envoy()
        if self._inventory.known and not self.servers.torchserve_alive():
            self._inventory.forget()
            self._dirty = True
            raise ServerGone("TorchServe has ended")
        self._watch_workers()
        self._watch_trust()
        self._dirty = self._secrets.renewed() or self._dirty
        if self._routing and time.monotonic() - self._compared > COMPARE_S:
            self._compared = time.monotonic()
            self._dirty = self._dirty or not self.servers.envoy.in_force(*self._routing)
            self.journal.flush()

    def _watch_trust(self) -> None:
        if time.monotonic() - self._trust_seen > COMPARE_S:
            self._trust_seen = time.monotonic()
            self._dirty = self._dirty or self._trust_stamp() != self._trusted_as

    def _tell_health(self) -> None:
        """Which versions have a worker that can answer, for the gateway."""
        if self.servers.running.gateway is None or self._routing is None:
            return
        served, policies, _ = self._routing
        keys = [(name, version) for name in sorted(served) for version in sorted(served[name])]
        found = {key: there.served.workers for key, there in self._inventory.so_far.items() if may_be_asked(key, there)}
        workers = [
            Workers(*key, tuple(w.pid for w in found.get(key, ())), tuple(w.ready for w in found.get(key, ())))
            for key in keys
        ]
        with suppress(WriteFailed):  # of a full disk the next change tells
            self._health.step(workers, routed(policies))

    def _watch_workers(self) -> None:
        """TorchServe starts workers that ended again, and gives up after some minutes."""
        for key, found in list(self._inventory.so_far.items()):
            if found.member or found.well or time.monotonic() - found.looked < LOOK_S:
                continue
            found.looked = time.monotonic()
            try:
                self._see(key, found)
            except ManagementFailed:
                return

    def _see(self, key: Key, found: Found) -> None:
        """Ask TorchServe about a version some of whose workers are missing."""
        served = self._server().served(*key)
        if served is None or served.asked != found.served.asked:  # somebody went past the document
            self._dirty = True
            found.doubt()
            if served is None:
                self._inventory.lose(key)
                return
        before, manned = found.served.ready, found.manned
        found.see(served)
        self._inventory.see_members(served)
        self._dirty = self._dirty or found.manned != manned or served.ready != before
        if found.proved and served.ready != before:
            ready = f"{served.ready} of {served.asked} workers ready"
            self.journal.note(f"{served}: {ready}; their log is {self.state.workers_log}")
        if found.proved and found.lost and found.pushed.due:
            found.pushed.tried()
            self._server().management.scale(*key, served.asked)

    def _revive_envoy(self) -> None:
        """At once, with the routes that it had."""
        routes = self._routing
        if routes is None or self.servers.envoy_alive() or self.journal.waits(ENVOY):
            return
        try:
            self.servers.start_envoy(*routes)
        except UserError as err:
            self.journal.trouble(ENVOY, err)
        else:
            self.journal.well(ENVOY)
            self.journal.note("Envoy had died and was started again")

    def _start(self, what: str, start: Callable[[], None]) -> None:
        """At once the first time, then after ever longer waits."""
        backoff = self._starts.setdefault(what, Backoff())
        while not backoff.due:
            self.pause(STEP_S)
        backoff.tried()
        try:
            start()
        except UserError as err:
            self.journal.trouble(what, err)
            raise
        self.journal.well(what)

    def _server(self) -> Server:
        running = self.servers.running
        return Server(
            management=Management(running.management),
            inference=running.inference,
            unpacked=shared.unpacked_in(self.servers.running),
            server_log=self.state.server_log,
            workers_log=self.state.workers_log,
            notify=self.journal.note,
            pause=self.pause,
            wait=self.wait,
        )


def may_be_asked(key: Key, found: Found) -> bool:
    """Workers that explain are in the routes before they have shown that they can."""
    return not is_explainer(key[0]) or found.proved or found.trusted
