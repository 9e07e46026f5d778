"""Brings into TorchServe what a document declares: versions with workers of their own, and those in shared workers.

A version that fails is left out, and its routes go before it does. It blames nobody else: a revision that was in force
before goes on without it, one that never was fails with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marctl.build.reader import Archive
from marctl.core.errors import UserError
from marctl.core.shared import is_shared
from marctl.core.words import counted
from marctl.stack import shared, versions
from marctl.stack.document import Document, Pool
from marctl.stack.inventory import Inventory, ServerGone
from marctl.stack.journal import Journal
from marctl.stack.logs import Mark
from marctl.stack.management import Served
from marctl.stack.registered import Found, Wanted, named, wanted
from marctl.stack.routing import Key
from marctl.stack.shared import SharedWorker
from marctl.stack.versions import Server


def as_wanted(each: Wanted, inventory: Inventory, journal: Journal, pool: Pool | None = None) -> bool:
    """Whether nothing is to be done for it now. `pool`: the settings of shared workers, for one that is in them."""
    if journal.waits(named(each.key)):
        return True
    found = inventory.all.get(each.key)
    if found is None or not found.proved or found.served.digest != each.digest:
        return False
    if each.shared:
        return pool is not None and pool.runs_like(found.pool)
    return found.member is None and found.served.asked >= each.workers


def explainers_to_come(document: Document, inventory: Inventory, journal: Journal) -> set[Key]:
    """Workers that explain, or will, and have not shown it yet; without those that failed lately."""
    return {
        key
        for key, each in wanted(document).items()
        if each.explain and not as_wanted(each, inventory, journal, document.shared)
    }


@dataclass(frozen=True)
class Loading:
    """The loads of one pass of the reconciler. Its methods raise UserError where the revision is new."""

    document: Document
    is_new: bool
    """Whether the document was never in force: then nothing gets traffic before all of it has proved itself."""
    server: Server
    inventory: Inventory
    journal: Journal
    read: Callable[[Wanted], Archive]
    """Its archive, checked."""
    route: Callable[[], None]
    gone: Callable[[], bool]
    """Whether TorchServe has ended."""
    shown: set[tuple[str, str]]
    """Shared worker and digest of each version that answered its samples there: after a death it need not again."""

    def load(self, *, explain: bool) -> None:
        """Everything that is declared and not there, and more workers where there are too few; all side by side."""
        logs = self.server.mark()
        begun: list[tuple[Wanted, Archive]] = []
        for each in self._missing(explain=explain, in_shared=False):
            with self._blaming(each):
                begun.append((each, self._begin(each)))
        for each, archive in begun:
            with self._blaming(each):
                served = versions.prove(self.server, archive, logs, explain=explain)
                self.inventory.all[each.key] = Found.of(served, proved=True)
                self.journal.well(named(each.key))
                if not self.is_new:
                    self.route()
        self._load_shared(explain=explain)

    def leave_out(self, key: Key) -> None:
        """First the routes, then the version."""
        if (there := self.inventory.all.get(key)) and not self.is_new and not there.member:
            there.doubt()
            self.route()
        self.inventory.remove(self.server, key)

    def _missing(self, *, explain: bool, in_shared: bool) -> Iterator[Wanted]:
        for each in wanted(self.document).values():
            pool = self.document.shared if in_shared else None
            asked = (each.explain, each.shared) == (explain, in_shared)
            if asked and not as_wanted(each, self.inventory, self.journal, pool):
                yield each

    @contextmanager
    def _blaming(self, each: Wanted) -> Iterator[None]:
        """A version that fails goes, unless it served before, with fewer workers, and goes on with those.

        A new revision fails with it, an old one goes on without.
        """
        before = self.inventory.all.get(each.key)
        served_before = before is not None and before.proved
        try:
            yield
        except UserError as err:
            if self.gone():
                raise ServerGone(f"TorchServe ended while {named(each.key)} was loaded: {err}") from err
            there = self.inventory.all.get(each.key)
            if there is not None and there is before and served_before:
                if there.member is None:
                    there.see(self.server.management.describe(*each.key))
            else:
                self.leave_out(each.key)
            if self.is_new:
                raise
            self.journal.trouble(named(each.key), err)

    # Workers of its own

    def _begin(self, each: Wanted) -> Archive:
        """Registered and loading afterwards; a content that is not declared any more makes room for it."""
        archive = self.read(each)
        there = self.inventory.all.get(each.key)
        if there and (there.member or there.served.digest != each.digest):
            self._replace(there)
            there = None
        if there is None:
            self.server.notify(f"{named(each.key)}: loading")
            versions.begin(self.server, archive, each.workers, explain=each.explain)
            self.inventory.all[each.key] = Found.of(self.server.management.describe(*each.key))
        elif there.served.asked < each.workers:
            self.server.notify(f"{named(each.key)}: scaling to {each.workers}")
            self.server.management.scale(*each.key, each.workers)
        return archive

    def _replace(self, there: Found) -> None:
        """TorchServe takes no second archive of a version. Others answer meanwhile, where there are others."""
        there.doubt()
        self.route()
        self.inventory.drain(self.server, there)
        self.inventory.remove(self.server, (there.served.model, there.served.version))

    # Shared workers

    def _load_shared(self, *, explain: bool) -> None:
        """Versions without workers of their own: into the lists of shared workers, which must answer for each of them.

        The gateway is told once, of all.
        """
        logs = self.server.mark()
        newcomers: dict[SharedWorker, list[tuple[Wanted, Archive]]] = {}
        for each in self._missing(explain=explain, in_shared=True):
            with self._blaming(each):
                worker, archive = self._begin_shared(each)
                newcomers.setdefault(worker, []).append((each, archive))
        for worker, begun in newcomers.items():
            faults = self._faults_of(worker, [archive for _, archive in begun], logs)
            for each, archive in begun:
                with self._blaming(each):
                    if fault := faults.get(archive.sha256):
                        raise fault
                    self.shown.add((worker.name, archive.sha256))
                    self.inventory.all[each.key].proved = True
                    self.journal.well(named(each.key))
        if newcomers and not self.is_new:
            self.route()
        self._scale_shared()

    def _begin_shared(self, each: Wanted) -> tuple[SharedWorker, Archive]:
        """Unpacked, and known as a member; a former content, or workers of its own, make room for it."""
        archive, pool, server = self.read(each), self.document.shared, self.server
        worker = shared.worker_of(archive, pool, explain=each.explain)
        there = self.inventory.all.get(each.key)
        if there and (there.member is None or there.served.digest != each.digest):
            self._replace(there)
            there = None
        member = server.run(lambda: shared.unpack_member(archive, server.unpacked, explain=each.explain))
        if there is None or there.worker != worker.name or there.pool is None:
            served = shared.as_member(shared.nobody(worker), each.key, member)
            self.inventory.all[each.key] = Found.of(served, member=member, worker=worker.name, pool=pool)
        return worker, archive

    def _faults_of(self, worker: SharedWorker, archives: list[Archive], logs: Mark) -> dict[str, UserError]:
        """Why versions cannot be served, by digest: each is asked its samples, unless it answered them in this worker
        before."""
        asked = [archive for archive in archives if (worker.name, archive.sha256) not in self.shown]
        self.server.notify(f"{worker.name}: {counted(len(archives), 'version')}; the samples of {len(asked)} are asked")
        try:
            served = self._open_shared(worker, logs)
            found = shared.prove(self.server, served, asked, explain=worker.explain)
        except UserError as err:
            return dict.fromkeys((archive.sha256 for archive in archives), err)
        processes = f"{served.ready} of {served.asked} processes"
        self.server.notify(f"{worker.name}: ready after {logs.elapsed_s():.1f} s, {processes}")
        return {archive.sha256: fault for archive, fault in zip(asked, found, strict=True) if fault}

    def _open_shared(self, worker: SharedWorker, logs: Mark) -> Served:
        """The worker, registered if it is not, with the list of its members."""
        members = self.inventory.members(worker.name)
        if worker.key not in self.inventory.all:
            served = shared.begin(self.server, worker, Path(members[0].folder), logs)
            self.inventory.all[worker.key] = Found.of(served, proved=True)
        self.inventory.tell_members(self.server, worker.name)
        return self.inventory.all[worker.key].served

    def _scale_shared(self) -> None:
        """As many processes as are declared."""
        workers = self.document.shared.workers
        for key, there in list(self.inventory.all.items()):
            if is_shared(key[0]) and there.served.asked != workers and self.inventory.members(key[0]):
                there.see(versions.scale(self.server, *key, workers))
                self.inventory.see_members(there.served)
