"""Ray: of this process's own on this machine, or a cluster that runs; and units on it.

Ray Data is given the units, not the rows: what a unit holds and where its output goes is settled before, so that a
unit which Ray begins twice, because an actor or a node was lost, leaves what it would have left the first time.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from marctl.batch.actor import Actor, Outcome, Setup
from marctl.batch.plan import Unit
from marctl.batch.room import Room
from marctl.core.errors import UserError
from marctl.core.extras import install

OBJECT_STORE_BYTES = 80 << 20
"""Units and reports are all that passes through it; Ray takes no less."""


STARTS = 3
"""Attempts to start a Ray of our own."""


class NoCluster(UserError):
    """Ray does not start, or no cluster answers."""


class ClusterLost(UserError):
    """Ray ended while units were computed."""


def environment(*, own: bool) -> dict[str, str]:
    """Read by Ray when it is imported: nothing is reported to anybody; a Ray of our own listens on loopback alone, and
    takes no word from whoever does not know this run's token."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if not own:
        return quiet
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**quiet, **token, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def cluster(address: str | None, folder: Path, cpus: int) -> Iterator[Any]:
    """Ray, connected. `cpus`: of a Ray of our own. Raises NoCluster."""
    os.environ.update(environment(own=address is None))
    try:
        import ray
        import ray.data
    except ImportError as err:
        raise NoCluster(f"batch jobs run on Ray, which is not here ({err}): {install('batch')}") from err
    settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "configure_logging": True}
    if address is None:
        settings |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder / "ray"),
            "_node_ip_address": "127.0.0.1",
        }
    else:
        settings["address"] = address
    with errors_to(folder / "ray.log"):
        connect(ray, settings, address)
        try:
            yield ray
        finally:
            ray.shutdown()


def connect(ray: Any, settings: dict[str, Any], address: str | None) -> None:
    """Raises NoCluster. On a machine that is very busy, Ray's own limit of 30 seconds for a start may be too short."""
    attempts = STARTS if address is None else 1
    for attempt in range(1, attempts + 1):
        try:
            ray.init(**settings)
            return
        except Exception as err:  # Ray raises nothing narrower where its node does not start
            ray.shutdown()
            if attempt == attempts:
                where = "Ray does not start" if address is None else f"no Ray cluster answers at {address}"
                raise NoCluster(f"{where}: {' '.join(str(err).split())[:500]}") from err


@contextmanager
def errors_to(log: Path) -> Iterator[None]:
    """What Ray's C++ parts print goes to a file; `sys.stderr` goes on to the terminal."""
    former = sys.stderr
    terminal = os.dup(2)
    with log.open("ab") as file, os.fdopen(terminal, "w", buffering=1, closefd=False) as shown:
        os.dup2(file.fileno(), 2)
        sys.stderr = shown
        try:
            yield
        finally:
            sys.stderr = former
            os.dup2(terminal, 2)
            os.close(terminal)


def outcomes(ray: Any, setup: Setup, units: Sequence[Unit], archive: Path | None, room: Room) -> Generator[Outcome]:
    """Of each unit, as they come. Raises ClusterLost.

    `archive`: for machines that do not have it extracted; None where all actors are on this one.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # a thread in each actor that nobody listens to
    packed = [] if archive is None else [ray.put(archive.read_bytes())]
    rows = [{"unit": msgspec.json.encode(unit)} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Actor,
        fn_constructor_args=(msgspec.json.encode(setup), packed),
        compute=ray.data.ActorPoolStrategy(size=min(room.actors, len(rows))),
        num_cpus=room.cores,
        num_gpus=room.gpus or None,
    )
    try:
        for row in dataset.iter_rows():
            yield msgspec.json.decode(row["outcome"], type=Outcome)
    except ray.exceptions.RayError as err:
        raise ClusterLost(f"Ray failed: {' '.join(str(err).split())[:500]}") from err
