"""Starts and stops a stack: the process that reconciles, in the foreground or left behind, one per state folder."""

from __future__ import annotations

import getpass
import json
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import msgspec
import psutil

from marctl.core.errors import Relayed, UserError, short_name
from marctl.core.files import write_failed
from marctl.core.process import kill, rotate
from marctl.core.sole import sole_holder
from marctl.records.keeper import keeping
from marctl.stack.document import Document
from marctl.stack.follow import begin, following, node_name
from marctl.stack.metrics.page import MetricsPage
from marctl.stack.plan import (
    NothingToServe,
    computable,
    declare,
    find_archives,
    left_out,
    trusted_archives,
    with_workers,
)
from marctl.stack.ports import choose_ports
from marctl.stack.reconciler import Reconciler
from marctl.stack.rotation import rotating
from marctl.stack.servers import Request, Servers, stop_stack
from marctl.stack.state import DamagedState, State
from marctl.stack.torchserve import find_servers
from marctl.stack.versions import Notify
from marctl_handlers.core.log_lines import line, log_in_json

STOP_TIMEOUT_S = 90.0
"""For an orderly stop: half a minute to drain the gateway, and the servers' own time."""
POLL_S = 0.05
AGAIN_S = 0.02
BARE_FILE = "marctl.stack.up"


class AlreadyRunning(UserError):
    """This state folder's stack is up."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: `marctl down`, a service manager, or a terminal that was closed."""


def redis_url(state: State) -> str | None:
    """Of the stack that runs; None without Redis."""
    running = state.running()
    return running.redis.url if running is not None and running.redis is not None else None


def serve(state: State, request: Request, notify: Notify, ready: Callable[[], None]) -> None:
    """Build, declare, and reconcile until an exception ends it; then everything is stopped.

    `ready` is called once everything serves. Raises AlreadyRunning, and whatever keeps a first start from success;
    Ctrl-C and `terminable` signals end it in order. A second one skips the grace that requests under way have. A fault
    of this process's own does not end what serves; the next one takes over.
    """
    notify = recorded(state, notify)
    served = bool(find_servers(state))
    began = built = time.monotonic()

    def serves() -> None:
        nonlocal served
        served = True
        notify(f"archives {built - began:.1f} s, servers and models {time.monotonic() - built:.1f} s")
        ready()

    with reconciling(state):
        require(state, request)
        try:
            place, former_node = begin(state, request.follow, goes_on=served)
            if place is None:
                refuse_ports(state, request)
                declare_start(state, request, notify)
            built = time.monotonic()
            servers = Servers(state, request, notify)
            served = servers.adopted
            MetricsPage(state, lambda: servers.running).start()
            node, store = node_name(request.node or former_node, servers.running), Path(servers.running.store)
            with (
                keeping(state.prediction_log, partial(redis_url, state), state.spill, notify),
                following(state, place, node, store, notify),
                rotating(state.logs),
            ):
                Reconciler(state, servers, notify, follows=place is not None).run(serves)
        except BaseException as err:
            if isinstance(err, KeyboardInterrupt):
                forced = "" if isinstance(err, Terminated) else "; Ctrl-C once more to do it by force"
                notify(f"stopping{forced}")
            elif served:
                notify(f"this process ends, and what serves goes on without it: {type(err).__name__}: {err}")
                raise
            stop_stack(state)
            raise


def require(state: State, request: Request) -> None:
    """Keep whose archives may be loaded, if this start says anything about it."""
    if request.allow_unsigned:
        state.allow_unsigned()
    elif request.trusted is not None:
        state.require_signed(Path(request.trusted))


def recorded(state: State, notify: Notify) -> Notify:
    """Tells, and writes what it tells into the reconciler's log."""

    def tell(text: str) -> None:
        notify(text)
        level, _, message = text.partition(": ")
        if level not in ("warning", "error"):
            level, message = "info", text
        # Of a full disk the reconciler tells elsewhere, and what serves must go on.
        with suppress(OSError), state.reconciler_log.open("a", encoding="utf-8") as file:
            file.write(line("reconciler", level, message) + "\n")

    return tell


def refuse_ports(state: State, request: Request) -> None:
    """Raise PortTaken before archives are built, which may take minutes; not where a stack left its addresses."""
    with suppress(DamagedState):  # the servers of a stack whose file is damaged are found by themselves
        if state.running() is None:
            ports = (request.inference_port, request.management_port, request.metrics_port)
            choose_ports(*ports, request.gateway_port or 0)


def declare_start(state: State, request: Request, notify: Notify) -> None:
    """A further revision if recipes or the store hold what is not declared yet. Raises NothingToServe."""
    store, trust = Path(request.store), state.trust()
    if trust is None:
        paths = find_archives(Path(request.recipes), store, notify)
    else:
        notify(f"archives must be signed by a key in {trust.folder}; nothing is built here")
        paths = trusted_archives(store, trust, notify)
    now = state.history.current()
    document = declare(now.document, computable(paths, notify), left_out(state.history.revisions()), notify)
    document = with_workers(document, request.workers)
    if not document.models and now.document == Document():
        lacking = "and no recipe to build one from" if trust is None else f"that a key in {trust.folder} has signed"
        raise NothingToServe(f"nothing to serve: no archive in {request.store} {lacking}")
    if document != now.document:
        state.history.commit(document, expected=now.revision, actor=getpass.getuser(), command="up")


@contextmanager
def reconciling(state: State) -> Iterator[None]:
    """The right to reconcile, for one process at a time, and gone with it. Raises AlreadyRunning."""
    state.create()
    with sole_holder(state.reconciler_lock, lambda: AlreadyRunning(already_running(state))):
        yield


def already_running(state: State) -> str:
    found = state.reconciler()
    running = None
    with suppress(UserError):
        running = state.running()
    where = f", {running.predictions}" if running else ""
    return (
        f"the stack in {state.folder} is running already (pid {found.pid if found else 'unknown'}{where}); "
        f"stop it with `marctl down --state {state.folder}`, or give the second one another --state and ports"
    )


def serve_detached(state: State, request: Request, notify: Notify) -> None:
    """The same in a process of its own, left behind; returns once everything serves.

    Raises AlreadyRunning, and Relayed with what ended the other process before that.
    """
    if state.reconciler() is not None:
        raise AlreadyRunning(already_running(state))
    state.create()
    reading, writing = os.pipe()
    with open_log(state) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", BARE_FILE, str(state.folder), msgspec.json.encode(request).decode(), str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as news:
            follow(news, notify, state)
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait()
        raise


def open_log(state: State) -> IO[bytes]:
    try:
        rotate(state.reconciler_log)
        return state.reconciler_log.open("ab")
    except OSError as err:
        raise write_failed(state.reconciler_log, err) from err


def follow(news: IO[str], notify: Notify, state: State) -> None:
    """Pass on what the other process tells, until it serves."""
    for news_line in news:
        told = json.loads(news_line)
        if "note" in told:
            notify(told["note"])
        elif "failed" in told:
            raise Relayed(told["failed"], told["detail"])
        else:
            return
    raise UserError(f"the process that was to serve has ended without a word; its log is {state.reconciler_log}")


def stop(state: State, notify: Notify) -> bool:
    """End the reconciler and everything else of a state folder; whether there was anything to stop.

    Requests under way are answered first. Needs no room on the disk.
    """
    found = state.reconciler()
    process = found.process if found else None
    if process is not None:
        notify(f"stopping (pid {process.pid})")
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while found is not None and found.alive and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if found is not None and found.alive:
            notify("it does not end by itself; ended by force")
            kill([process])
    return stop_stack(state) or process is not None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does.

    Python ignores an exception that is raised while an object is finalized, as a connection pool is: a signal that
    comes then takes effect a moment later.
    """

    def end(_: int, frame: FrameType | None) -> None:
        if finalizing(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            return
        raise Terminated

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def finalizing(frame: FrameType | None) -> bool:
    """Whether this code runs because an object went away."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


def main(folder: str, request: str, descriptor: str) -> int:
    """The process that is left behind: it tells its progress through a pipe until it serves, and to its log."""
    news: list[IO[str]] = [os.fdopen(int(descriptor), "w", encoding="utf-8")]

    def tell(content: dict[str, Any]) -> None:
        with suppress(OSError):
            for pipe in news:
                pipe.write(json.dumps(content) + "\n")
                pipe.flush()

    def notify(text: str) -> None:
        tell({"note": text})

    def ready() -> None:
        tell({"ready": True})
        while news:
            with suppress(OSError):
                news.pop().close()

    state = State(Path(folder))
    logging.basicConfig(level=logging.WARNING)
    log_in_json("reconciler")
    try:
        with terminable():
            serve(state, msgspec.json.decode(request, type=Request), notify, ready)
    except Terminated:
        recorded(state, notify)("stopped")
        return 0
    except UserError as err:
        recorded(state, notify)(f"error: {err}") if not news else tell({"failed": short_name(err), "detail": str(err)})
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
