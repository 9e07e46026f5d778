"""What is to be registered with TorchServe, and what is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from marctl.core.explainers import explainer_of
from marctl.core.process import Identity
from marctl.stack.backoff import Backoff
from marctl.stack.document import Document, Pool, Version
from marctl.stack.management import Served
from marctl.stack.routing import Key
from marctl.stack.store import DIGEST_LENGTH
from marctl_handlers.shared.members import Member

LOST_S = 60.0
"""After so long without a worker that was asked for, TorchServe has given up on it."""
LONGEST_PUSH_S = 600.0


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
    def shared(self) -> bool:
        """Whether it has no workers of its own."""
        return self.content.shared

    @property
    def workers(self) -> int:
        """Its own."""
        if self.shared:
            return 0
        asked = self.content.explainers if self.explain else self.content.workers
        return asked if isinstance(asked, int) else 0

    @property
    def digest(self) -> str:
        return self.content.archive.removeprefix("sha256:")[:DIGEST_LENGTH]


def wanted(document: Document) -> dict[Key, Wanted]:
    """Predictions' workers first: they need not share the processor with those that explain while they load."""
    all_of = [Wanted(model, version, content) for model, version, content in document.versions()]
    all_of += [
        Wanted(model, version, content, explain=True)
        for model, version, content in document.versions()
        if content.explainers is not None and not (content.shared and content.explainers == 0)
    ]
    return {each.key: each for each in all_of}


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
    """When TorchServe was asked about it last."""
    member: Member | None = None
    """Set for a version in a shared worker, as that one's list names it; None for one with workers of its own."""
    worker: str = ""
    """The shared worker's name."""
    pool: Pool | None = None
    """What the shared worker was configured by; None if that is not known."""
    pushed: Backoff = field(default_factory=lambda: Backoff(LOST_S, LONGEST_PUSH_S))

    @classmethod
    def of(
        cls,
        served: Served,
        *,
        proved: bool = False,
        trusted: bool = False,
        member: Member | None = None,
        worker: str = "",
        pool: Pool | None = None,
    ) -> Found:
        found = cls(served, proved, trusted, member=member, worker=worker, pool=pool)
        found.see(served)
        return found

    @property
    def manned(self) -> bool:
        """Whether a worker is left, or none is asked for: TorchServe would queue requests for those that are dead."""
        return self.served.asked == 0 or any(identity.alive for identity in self.workers)

    @property
    def well(self) -> bool:
        """Whether all its workers run, as far as their processes tell."""
        return self.short_since is None and all(identity.alive for identity in self.workers)

    @property
    def lost(self) -> bool:
        """Whether TorchServe has given up on a worker."""
        return self.short_since is not None and time.monotonic() - self.short_since > LOST_S

    def doubt(self) -> None:
        """It must answer again before it gets traffic."""
        self.proved = self.trusted = False

    def see(self, served: Served) -> None:
        """What TorchServe tells by now."""
        self.served = served
        self.workers = [identity for pid in served.pids if (identity := Identity.of(pid))]
        # A worker that has just died is READY to TorchServe until it is asked once more.
        if min(served.ready, len(self.workers)) >= served.asked:
            self.short_since = None
        elif self.short_since is None:
            self.short_since = time.monotonic()


def named(key: Key) -> str:
    """`mcqa 2.0`."""
    return " ".join(key)
