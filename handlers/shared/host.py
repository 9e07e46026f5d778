"""One process's many versions: finds whom each request is for, and answers a batch in turns.

    batch -> by version -> those that are loaded, in turns -> those that were loading, if they are there in time

Each version goes the same path as in a worker of its own (handlers/core/pipeline.py), with its own names, cache
identity and log. A request's path says whom it is for, `model/version` behind the shared worker's own; the list of
members says who that is.
"""

from __future__ import annotations

import atexit
import gc
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from marctl_handlers.archive import CONFIG_FILE, handlers_digest, read_metadata
from marctl_handlers.core.errors import Busy, HandlerError, LoadError, ModelFault, Unavailable
from marctl_handlers.core.forms import refusal
from marctl_handlers.core.messages import LOADING_HEADER, SAMPLE_HEADER, Reply, Request
from marctl_handlers.core.pipeline import Exchange, Pipeline, Times, deadline_of
from marctl_handlers.redis.features import features_link
from marctl_handlers.redis.link import RedisLink
from marctl_handlers.redis.log import REPLY_TIMEOUT_S, LogWriter
from marctl_handlers.serving import PATH_HEADER, Stores, answer_all, close_stores, open_version
from marctl_handlers.shared.blame import Blame
from marctl_handlers.shared.members import Member, Members
from marctl_handlers.shared.residents import Failure, Loading, Resident, Residents
from marctl_handlers.shared.settings import SharedSettings
from marctl_handlers.shared.turns import Waiting, in_turns
from marctl_handlers.tasks import TASKS, find_task

log = logging.getLogger(__name__)
MOST_STUCK = 4
"""Loads that hang, before the worker ends for another one to begin anew."""
LOG_GATHER_S = 0.2
"""How long records wait for others: each version's are written by a call of its own."""
Asked = Waiting[Resident, int]


@dataclass(slots=True, eq=False)
class Call:
    """A version's requests in a batch, by their places."""

    member: Member
    places: list[int] = field(default_factory=list)


class Host:
    """A shared worker's versions. `answer` is for one thread."""

    def __init__(self, root: Path, settings: SharedSettings) -> None:
        """`root`: the worker's own archive, with the list of members. Raises LoadError.

        All of them compute on the processor: small models, many of which share the memory that their loads are
        weighed in.
        """
        self.settings = settings
        self._handlers = handlers_digest(read_metadata(root))
        self._members = Members(root)
        self._blame = Blame(root)
        self._stores = shared_stores()
        self._residents = Residents(self._load, settings, self._left)
        self._past: defaultdict[str, float] = defaultdict(float)
        """What versions counted that have left."""
        self._cold: Counter[str] = Counter()
        self.model_seconds = 0.0
        """Time that batches spent at models."""
        self._broken = False
        import_tasks(self._members.tasks)
        for member in self._members.one_of_each_task():  # what a runtime imports is there before the first request
            self._residents.find(member)

    @property
    def broken(self) -> bool:
        """Whether the process must end."""
        return self._broken or self._residents.stuck >= MOST_STUCK

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. Never raises for anything that a client or a version did."""
        began = time.monotonic()
        if self._members.refresh():
            self._residents.keep(self._members.archives)
        replies: dict[int, Reply] = {}
        calls = self._calls(requests, replies)
        cold: list[tuple[Call, Loading]] = []
        asked: list[Asked] = []
        for call in calls:
            found = self._find(call, requests, replies)
            if isinstance(found, Resident):
                asked.append(waiting_for(found, call.places))
            elif found is not None:
                self._cold["waits"] += len(call.places)
                cold.append((call, found))
        self._compute(asked, requests, replies, began)
        if cold:
            self._compute(self._arrived(cold, requests, replies, began), requests, replies, began)
        return [replies[i] for i in range(len(requests))]

    def see(self, batch: Sequence[Exchange], times: Times) -> None:
        """Each version's pipeline tells what its turn took."""
        self.model_seconds += times.inference

    def name_of(self, request: Request) -> tuple[str, str] | None:
        """Model and version that a request is for, None unless they are members: clients make no names of figures."""
        member = self._members.find(address_of(request)[0])
        return None if member is None else (member.model, member.version)

    def totals(self) -> dict[str, float]:
        """For the metrics page: the versions' own figures summed up, and those of the memory they share."""
        residents, counts = self._residents, self._residents.counts
        held = residents.held()
        sums = self._past.copy()
        for resident in held:
            add(sums, counted(resident.pipeline))
        link, features = self._stores.cache_link, self._stores.features_link
        if link is not None:
            sums["handler_cache_errors_total"] += link.failures + link.refused
        return {
            **sums,
            **({"handler_cache_asking": int(link.available)} if link else {}),
            **({"handler_features_asking": int(features.available)} if features else {}),
            "handler_shared_loads_total": counts["loads"],
            "handler_shared_load_seconds_total": residents.load_seconds,
            "handler_shared_load_failures_total": counts["failures"],
            "handler_shared_evictions_total": counts["evictions"],
            "handler_shared_cold_requests_total": self._cold["waits"],
            "handler_shared_cold_refused_total": self._cold["refused"],
            "handler_shared_resident_versions": len(held),
            "handler_shared_resident_bytes": residents.bytes,
        }

    def held(self) -> tuple[list[str], int]:
        """`model/version` of all that are loaded, the one asked for last at the end, and the bytes that they take."""
        held = self._residents.held()
        return [f"{each.member.model}/{each.member.version}" for each in held], self._residents.bytes

    # One batch

    def _calls(self, requests: Sequence[Request], replies: dict[int, Reply]) -> Iterable[Call]:
        """The batch by version; who is asked for a version that is not a member is told so."""
        calls: dict[str, Call] = {}
        for place, request in enumerate(requests):
            name = address_of(request)[0]
            member = self._members.find(name)
            if member is None:
                gone = Unavailable("this worker does not serve that version (any more); send the request again")
                replies[place] = refusal(gone, {})
                continue
            calls.setdefault(name, Call(member)).places.append(place)
        return calls.values()

    def _find(self, call: Call, requests: Sequence[Request], replies: dict[int, Reply]) -> Resident | Loading | None:
        """The version, or its load; None where its requests are refused."""
        member = call.member
        if self._blame.suspect(member.archive):
            text = f"{member.names} ended its shared worker several times and is left alone for some minutes; "
            self._refuse(call, Unavailable(text + "give it `workers: 1` in its recipe"), replies)
            return None
        found = self._residents.find(member)
        if not isinstance(found, Failure):
            return found
        for place in call.places:
            # What went wrong is for whoever registers the version, who asks its samples.
            why = found.reason if requests[place].header(SAMPLE_HEADER) is not None else "see the workers' log"
            replies[place] = refusal(Unavailable(f"{member.names} did not load: {why}"), headers_of(member))
        return None

    def _compute(
        self, asked: Iterable[Asked], requests: Sequence[Request], replies: dict[int, Reply], began: float
    ) -> None:
        """In turns; what the batch has no time for is refused."""
        asked = list(asked)
        spent_s = time.monotonic() - began

        def compute(resident: Resident, places: list[int]) -> None:
            answers = self._answer(resident, [own(requests[place]) for place in places])
            replies.update(zip(places, answers, strict=True))

        in_turns(asked, compute, self.settings.turn_ms / 1000, self.settings.batch_ms / 1000 - spent_s)
        for each in asked:
            each.owner.request_s = each.request_s
            if each.places:
                busy = Busy(
                    f"{each.owner.member.names} has more requests at once than its share of a shared worker computes; "
                    "send them later, or give it `workers: 1` in its recipe"
                )
                self._refuse(Call(each.owner.member, list(each.places)), busy, replies)

    def _answer(self, resident: Resident, requests: list[Request]) -> list[Reply]:
        """One turn of a version. Whatever it raises is its own failure."""
        pipeline = resident.pipeline
        try:
            with self._blame.answering(resident.member.archive):
                replies = answer_all(pipeline, requests)
        except Exception:
            log.exception("%s: a batch failed", resident.member.names)
            fault = refusal(ModelFault(f"model {resident.member.names} failed"), headers_of(resident.member))
            replies = [fault] * len(requests)
        self._broken = self._broken or pipeline.broken
        return replies

    def _arrived(
        self,
        cold: Iterable[tuple[Call, Loading]],
        requests: Sequence[Request],
        replies: dict[int, Reply],
        began: float,
    ) -> Iterable[Asked]:
        """Versions whose load ends in time. For others the gateway asks again, or somebody else."""
        until = began + self.settings.cold_wait_ms / 1000
        for call, loading in cold:
            latest = min(until, *(deadline_of(requests[place]) for place in call.places))
            loading.done.wait(max(latest - time.monotonic(), 0))
            found = self._find(call, requests, replies)
            if isinstance(found, Resident):
                yield waiting_for(found, call.places)
            elif found is not None:
                self._cold["refused"] += len(call.places)
                self._refuse(call, Unavailable(f"{call.member.names} is being loaded; send the request again"), replies)
                for place in call.places:
                    replies[place] = replace(replies[place], headers={**replies[place].headers, LOADING_HEADER: "1"})

    def _refuse(self, call: Call, error: HandlerError, replies: dict[int, Reply]) -> None:
        reply = refusal(error, headers_of(call.member))
        replies.update(dict.fromkeys(call.places, reply))

    # Loading and leaving

    def _load(self, member: Member) -> Pipeline:
        """In a thread of its own. Raises LoadError."""
        root = Path(member.folder)
        found = handlers_digest(read_metadata(root))
        if found != self._handlers:
            raise LoadError(
                f"it was built with other handler code ({found[:12]}) than this worker runs ({self._handlers[:12]}); "
                "build it again, or give it `workers: 1`"
            )
        with self._blame.loading(member.archive):
            pipeline = open_version(root, member.names, handler_section(root), stores=self._stores)
        for watched in (pipeline, pipeline.explainer):
            if watched is not None:
                watched.watcher = self
        return pipeline

    def _left(self, resident: Resident) -> None:
        """A version that goes: its figures stay."""
        add(self._past, counted(resident.pipeline))
        close_stores(resident.pipeline)


def address_of(request: Request) -> tuple[str, str]:
    """`model/version` and what follows them, from the path behind the worker's own."""
    model, _, rest = (request.header(PATH_HEADER) or "").partition("/")
    version, _, rest = rest.partition("/")
    return f"{model}/{version}", rest


def own(request: Request) -> Request:
    """The request as the version's own worker would get it."""
    headers = {**request.headers, PATH_HEADER: address_of(request)[1]}
    return replace(request, headers=headers)


def waiting_for(resident: Resident, places: list[int]) -> Asked:
    asked: Asked = Waiting(resident, request_s=resident.request_s)
    asked.places.extend(places)
    return asked


def headers_of(member: Member) -> dict[str, str]:
    return {"x-model-version": member.version}


def add(sums: defaultdict[str, float], counts: Mapping[str, float]) -> None:
    for name, value in counts.items():
        sums[name] += value


def counted(pipeline: Pipeline) -> dict[str, float]:
    """A version's own figures, without those of a link that all share."""
    totals = {**pipeline.totals(), **getattr(pipeline.cache, "counts", dict)()}
    return {name: value for name, value in totals.items() if name.endswith("_total")}


def handler_section(root: Path) -> Mapping[str, Any] | None:
    """Of an archive's model-config.yaml. Raises LoadError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        config = yaml.load((root / CONFIG_FILE).read_bytes(), loader)
    except (OSError, yaml.YAMLError) as err:
        raise LoadError(f"{CONFIG_FILE} is damaged ({err}); build the archive again") from err
    return config.get("handler") if isinstance(config, dict) else None


def shared_stores() -> Stores:
    """Links to Redis for all versions; none without Redis."""
    cache_link, log_link = RedisLink.from_environment(), RedisLink.from_environment(REPLY_TIMEOUT_S)
    if cache_link is None or log_link is None:
        return Stores()
    writer = LogWriter(LOG_GATHER_S)
    atexit.register(writer.close)
    return Stores(cache_link, features_link(), log_link, writer)


def import_tasks(names: Iterable[str]) -> None:
    """What the members' tasks need, before the first request: an import holds the interpreter for long."""
    for name in sorted(set(names) & set(TASKS)):
        try:
            find_task(name)
        except LoadError as err:
            log.warning("task %s: %s", name, err)
    # What is imported stays: the collections after versions have left need not look at it.
    gc.collect()
    gc.freeze()
