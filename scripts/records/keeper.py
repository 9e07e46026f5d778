"""Keeps a stack's prediction log by itself: drains it, merges its files, removes the oldest days, and says how it is.

A thread of the process that supervises the stack; whatever fails here is told and tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import redis

from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.records import files, position
from marctl.records.drain import STEP_RECORDS, Drained, alone, claim, drain_spill, drain_streams
from marctl.records.kinds import KINDS, LABEL_KIND, PREDICTION_KIND
from marctl.records.streams import Redis
from marctl_handlers.redis.spill import held_bytes

LIMITS_FILE, FIGURES_FILE = "_limits.json", "_figures.json"
EVERY_S = 15.0
"""Between two drains of what has come; a stream that could fill a file is drained at once."""
POLL_S = 1.0
TIDY_S = 60.0
RETRY_S = 5.0
CONNECT_TIMEOUT_S, TIMEOUT_S = 1.0, 30.0
"""For one answer of Redis; pages are large."""
WAIT_S = 1.0
"""For a drain by hand into the same folder."""
CLOSE_S = 10.0

Notify = Callable[[str], None]
Connect = Callable[[], Redis | None]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept in files; the oldest days leave first, today never."""

    days: Annotated[float, msgspec.Meta(gt=0)] | None = 90.0
    bytes: Annotated[int, msgspec.Meta(gt=0)] | None = 10 << 30


class Figures(msgspec.Struct, frozen=True):
    """The state of a log, as its keeper last saw it."""

    time: str
    predictions: int
    labels: int
    """Drained since the folder was begun."""
    lost: int
    """Records that a worker counted and that never came; those on their way count until they are here."""
    quarantined: int
    undrained: int | None
    """In Redis; None while it does not answer."""
    spilled_bytes: int
    """In spill files."""
    kept_bytes: int
    days: int
    oldest: str | None
    removed_days: int
    """By this keeper."""
    limits: Limits
    trouble: str | None
    """What fails at the moment."""


class Keeper:
    """Of one folder. `connect` gives a client of the stack's Redis, None while there is none.

    `run` works in the caller's thread, `start` in one of its own, until `stop`.
    """

    def __init__(
        self,
        folder: Path,
        connect: Connect,
        spill: Path | None,
        notify: Notify,
        every_s: float = EVERY_S,
        step_records: int = STEP_RECORDS,
    ) -> None:
        self.total = Drained()
        self._folder, self._spill = folder, spill
        self._connect, self._notify = connect, notify
        self._every_s, self._step_records = every_s, step_records
        self._drained_at = self._tidied_at = float("-inf")
        self._undrained: int | None = None
        self._removed_days = 0
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="log-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drain once more, for some seconds at most."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def run(self) -> None:
        """Never raises."""
        while not self._stopping.wait(RETRY_S if self._trouble else min(POLL_S, self._every_s)):
            self.attend()
        self._drained_at = float("-inf")
        self._notify = lambda _: None  # Redis may be gone already, as it should
        self.attend()

    def attend(self) -> None:
        """Whatever is due now. Failures are told once and tried again."""
        try:
            self._drain_if_due()
            trouble = None
        except redis.RedisError as err:
            trouble = f"Redis does not answer ({type(err).__name__}), so its records wait there"
        except (UserError, OSError) as err:
            trouble = str(err)
        except Exception as err:
            trouble = f"{type(err).__name__}: {err}"
        if trouble != self._trouble:
            self._notify(f"warning: prediction log: {trouble}" if trouble else "prediction log: all is well again")
            self._trouble = trouble
            self._save_figures()

    def _drain_if_due(self) -> None:
        now = time.monotonic()
        due = now - self._drained_at >= self._every_s
        client = self._connect()
        try:
            self._undrained = None
            if client is not None:
                lengths = stream_lengths(client)
                self._undrained = sum(lengths)
                due = due or max(lengths) >= self._step_records
        finally:
            # What was spilled comes out without Redis, too: it is away, or full.
            if due:
                self._drained_at = now
                self._drain(client if self._undrained is not None else None)

    def _drain(self, client: Redis | None) -> None:
        with alone(self._folder, WAIT_S):
            done = drain_spill(self._folder, self._spill, self._step_records)
            if client is not None:
                if self._undrained:
                    done += drain_streams(client, self._folder, self._step_records)
                    self._undrained = sum(stream_lengths(client))
                else:
                    claim(client, self._folder)
            tidy = time.monotonic() - self._tidied_at >= TIDY_S
            if tidy:
                self._tidied_at = time.monotonic()
                self._tidy()
        self.total += done
        if done != Drained() or tidy:
            self._save_figures()

    def _tidy(self) -> None:
        limits = limits_of(self._folder)
        for kind in KINDS:
            if (self._folder / kind.name).is_dir():
                files.compact(self._folder / kind.name)
        today = datetime.now(UTC).date()
        gone = files.remove_days(self._folder, limits.days, limits.bytes, today)
        self._removed_days += len(gone)
        for day in gone:
            self._notify(f"prediction log: {day} is over the limits and was removed")

    def _save_figures(self) -> None:
        try:
            figures = self._figures()
            write_atomically(self._folder / FIGURES_FILE, msgspec.json.encode(figures))
        except (OSError, UserError):
            return  # the trouble has been told

    def _figures(self) -> Figures:
        by_day = files.days(self._folder)
        places = {kind: position.peek(self._folder / kind.name) for kind in KINDS}
        return Figures(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            predictions=places[PREDICTION_KIND].drained,
            labels=places[LABEL_KIND].drained,
            lost=sum(here.missing for here in places.values()),
            quarantined=sum(here.rejected for here in places.values()),
            undrained=self._undrained,
            spilled_bytes=held_bytes(self._spill) if self._spill and self._spill.is_dir() else 0,
            kept_bytes=sum(map(files.bytes_of, by_day.values())),
            days=len(by_day),
            oldest=next(iter(by_day)).isoformat() if by_day else None,
            removed_days=self._removed_days,
            limits=limits_of(self._folder),
            trouble=self._trouble,
        )


def stream_lengths(client: Redis) -> list[int]:
    """In entries. Raises redis.RedisError."""
    lengths: list[Any] = [client.xlen(kind.stream) for kind in KINDS]
    return lengths


@contextmanager
def keeping(folder: Path, url: Callable[[], str | None], spill: Path | None, notify: Notify) -> Iterator[None]:
    """A keeper at work until the end of the block. `url` says where the stack's Redis is at the moment."""
    keeper = Keeper(folder, connector(url), spill, notify)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


def connector(url: Callable[[], str | None]) -> Connect:
    """Connects anew where the address has changed."""
    clients: dict[str, Redis] = {}

    def connect() -> Redis | None:
        address = url()
        if address is None:
            return None
        if address not in clients:
            clients.clear()
            clients[address] = redis.Redis.from_url(
                address, socket_timeout=TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S
            )
        return clients[address]

    return connect


def limits_of(folder: Path) -> Limits:
    """Raises UserError for a damaged file."""
    path = folder / LIMITS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Limits)
    except FileNotFoundError:
        return Limits()
    except msgspec.DecodeError as err:
        raise UserError(f"{path} is damaged ({err}); set the limits again with `marctl log keep`") from err


def save_limits(folder: Path, limits: Limits) -> None:
    """In force within a minute. Raises WriteFailed."""
    write_atomically(folder / LIMITS_FILE, msgspec.json.encode(limits))


def figures_of(folder: Path) -> Figures | None:
    """What the keeper of a folder last said; None if it has none."""
    try:
        return msgspec.json.decode((folder / FIGURES_FILE).read_bytes(), type=Figures)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
