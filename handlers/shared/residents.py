"""The versions that a shared worker holds: loaded on demand, in threads of their own, within a bounded memory.

The version that was asked for least recently leaves first. What a version takes is by how much what the process has
allocated grew while it was loaded, if no other version or library was, and at least its files' size. One that fails to
load is not tried again at once.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from marctl_handlers.archive import MODEL_FOLDER
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.memory import allocated_bytes, give_back
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.shared.members import Member
from marctl_handlers.shared.settings import SharedSettings

log = logging.getLogger(__name__)
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
"""A version that failed to load is tried again after so long, and ever later."""
COLLECT_SHARE = 0.05
"""Of the memory limit: when so much has left, what Python and the C library hold of it is given back."""
LEAST_BYTES = 64 << 10
"""What a version takes in any case: its pipeline's own objects."""
OWN_MODULES = 1
"""A user's own task is a module of its version's."""
SLOW_S = 0.5
"""A load that takes longer has others run beside it; what they allocate cannot be told apart then."""
Load = Callable[[Member], Pipeline]
Leave = Callable[["Resident"], None]


@dataclass(slots=True, eq=False)
class Resident:
    """A loaded version."""

    member: Member
    pipeline: Pipeline
    bytes: int
    request_s: float = 0.0
    """What one of its requests took to compute lately; 0 if it had none."""


@dataclass(slots=True, eq=False)
class Loading:
    """A version on its way."""

    member: Member
    began: float | None = None
    """None while it waits for its turn; time.monotonic seconds."""
    alone: bool = True
    """Whether no other version was loaded meanwhile."""
    late: bool = False
    """Whether it has taken too long: what comes of it is thrown away."""
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version is not there, and until when it is not tried again."""

    reason: str
    until: float
    wait_s: float


class Residents:
    """For one thread that asks; loads run beside it."""

    def __init__(self, load: Load, settings: SharedSettings, leave: Leave = lambda _: None) -> None:
        """`leave` is called for a version that goes."""
        self._load = load
        self._settings = settings
        self._leave = leave
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Resident] = OrderedDict()
        """By the archive's digest; the one that was asked for last is at the end."""
        self._loading: dict[str, Loading] = {}
        self._queue: deque[Loading] = deque()
        self._failed: dict[str, Failure] = {}
        self._freed = 0
        self.bytes = 0
        self.stuck = 0
        """Loads that took too long and have not ended."""
        self.counts: Counter[str] = Counter()
        """loads, failures, evictions."""
        self.load_seconds = 0.0
        """What loads took."""

    def find(self, member: Member) -> Resident | Loading | Failure:
        """The version, or how far it is; one that is not there begins to load."""
        with self._lock:
            if (resident := self._held.get(member.archive)) is not None:
                self._held.move_to_end(member.archive)
                return resident
            self._give_up_late()
            self._start_next()
            if (loading := self._loading.get(member.archive)) is not None:
                return loading
            failure = self._failed.get(member.archive)
            if failure is not None and time.monotonic() < failure.until:
                return failure
            loading = self._loading[member.archive] = Loading(member)
            self._queue.append(loading)
            self._start_next()
            return loading

    def keep(self, archives: Collection[str]) -> None:
        """Let all others go, for they are no longer served."""
        with self._lock:
            gone = [self._held.pop(archive) for archive in list(self._held) if archive not in archives]
            self._failed = {archive: failure for archive, failure in self._failed.items() if archive in archives}
            self._forget(gone)

    def held(self) -> list[Resident]:
        """All that are loaded, the one asked for last at the end."""
        with self._lock:
            return list(self._held.values())

    # Loading

    def _start_next(self) -> None:
        """With the lock held: the next load, in their order, if there is none, or if those that there are take long."""
        now = time.monotonic()
        running = [loading for loading in self._loading.values() if loading.began is not None]
        while self._queue and len(running) < self._settings.loads_at_once:
            if any(each.began is not None and now - each.began < SLOW_S for each in running):
                return
            loading = self._queue.popleft()
            loading.began = now
            running.append(loading)
            if len(running) > 1:
                for each in running:
                    each.alone = False
            threading.Thread(target=self._run, args=(loading,), name="load", daemon=True).start()

    def _run(self, loading: Loading) -> None:
        """A load, in a thread of its own; whatever it raises is that version's failure."""
        member, before, modules = loading.member, allocated_bytes(), len(sys.modules)
        started = time.monotonic()
        resident, reason = None, ""
        try:
            pipeline = self._load(member)
            grown = allocated_bytes() - before
            if not loading.alone or len(sys.modules) > modules + OWN_MODULES:
                grown = 0  # another version's, or a library's, which stays
            resident = Resident(member, pipeline, max(grown, files_bytes(member), LEAST_BYTES))
            if resident.bytes > self._settings.memory_bytes:
                raise LoadError(
                    f"it takes {resident.bytes >> 20} MiB, and a shared worker holds {self._settings.memory_mb}; "
                    "raise `shared: {memory_mb}` in the declared state, or give it `workers: 1`"
                )
        except BaseException as err:  # SystemExit included: a version's own code ends nobody else's worker
            resident, reason = None, told(err)
            if not isinstance(err, LoadError):
                log.error("%s: loading failed", member.names, exc_info=err)
        with self._lock:
            self._settle(loading, resident, reason, time.monotonic() - started)
        loading.done.set()
        self._give_back()

    def _settle(self, loading: Loading, resident: Resident | None, reason: str, seconds: float) -> None:
        """With the lock held: what has become of a load."""
        if loading.late:
            self.stuck -= 1
            if resident is not None:
                self._leave(resident)
            return
        archive = loading.member.archive
        self._loading.pop(archive, None)
        self.load_seconds += seconds
        if resident is None:
            self._fail(loading.member, reason)
        else:
            self.counts["loads"] += 1
            self._failed.pop(archive, None)
            self._held[archive] = resident
            self.bytes += resident.bytes
            self._evict(keep=archive)
        self._start_next()

    def _fail(self, member: Member, reason: str) -> None:
        self.counts["failures"] += 1
        before = self._failed.get(member.archive)
        wait_s = FIRST_RETRY_S if before is None else min(before.wait_s * 2, LAST_RETRY_S)
        self._failed[member.archive] = Failure(reason, time.monotonic() + wait_s, wait_s)
        log.error("LoadError: %s: %s", member.names, reason)

    def _give_up_late(self) -> None:
        """With the lock held: a load that hangs takes no place from others; its thread is left to itself."""
        now, limit_s = time.monotonic(), self._settings.load_seconds
        late = [each for each in self._loading.values() if each.began is not None and now - each.began > limit_s]
        for loading in late:
            loading.late = True
            self.stuck += 1
            del self._loading[loading.member.archive]
            self._fail(loading.member, f"it was not loaded within {limit_s:g} s")
            loading.done.set()
        if late:
            self._start_next()

    # Leaving

    def _evict(self, keep: str) -> None:
        """With the lock held."""
        gone: list[Resident] = []
        while self.bytes - sum(each.bytes for each in gone) > self._settings.memory_bytes:
            archive = next(iter(self._held))
            if archive == keep:
                break
            gone.append(self._held.pop(archive))
        self.counts["evictions"] += len(gone)
        self._forget(gone)

    def _forget(self, gone: Collection[Resident]) -> None:
        for resident in gone:
            self.bytes -= resident.bytes
            self._freed += resident.bytes
            self._leave(resident)

    def _give_back(self) -> None:
        """What versions that have left held: Python's cycles first, then the C library's free pages."""
        with self._lock:
            if self._freed < COLLECT_SHARE * self._settings.memory_bytes:
                return
            self._freed = 0
        gc.collect()
        give_back()


def files_bytes(member: Member) -> int:
    """Of the model's own files, which are in memory in one form or another."""
    return sum(path.stat().st_size for path in (Path(member.folder) / MODEL_FOLDER).rglob("*") if path.is_file())


def told(err: BaseException) -> str:
    """A LoadError's own words; the kind of anything else, too."""
    return str(err) if isinstance(err, LoadError) else f"{type(err).__name__}: {err}"
