"""Tells whoever looks at a stack which versions a shared worker holds: a small file of each process."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from marctl_handlers.shared.host import Host

log = logging.getLogger(__name__)
PREFIX = "held-"
EVERY_S = 1.0


class Held(msgspec.Struct, frozen=True):
    """What one process holds; it may have ended since."""

    pid: int
    bytes: int
    versions: list[str]
    """`model/version`, the one asked for last at the end."""


def begin_report(host: Host, root: Path) -> None:
    """Write the file when what the host holds has changed, at most once a second, from a thread."""
    for path in root.glob(f"{PREFIX}*"):
        if not Path(f"/proc/{path.stem.removeprefix(PREFIX)}").exists():
            path.unlink(missing_ok=True)
    threading.Thread(target=report, args=(host, root), name="shared-report", daemon=True).start()


def report(host: Host, root: Path) -> None:
    """For ever. Without room on the disk nothing is told."""
    told: Held | None = None
    while True:
        versions, taken = host.held()
        held = Held(os.getpid(), taken, versions)
        if told is None or set(held.versions) != set(told.versions):
            told = held
            try:
                write(root, held)
            except OSError as err:
                log.warning("cannot tell which versions are loaded: %s", err.strerror)
        time.sleep(EVERY_S)


def write(root: Path, held: Held) -> None:
    path = root / f"{PREFIX}{held.pid}.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(held))
    os.replace(partial, path)


def read_held(root: Path) -> list[Held]:
    """Of every process of a shared worker, also of some that have ended."""
    found = []
    for path in sorted(root.glob(f"{PREFIX}*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Held))
        except (OSError, msgspec.DecodeError):
            continue
    return found
