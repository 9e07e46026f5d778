"""A sign of life for whoever watches the workers from outside: a hung process stops giving it."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)
FOLDER = "heartbeat"
EVERY_S = 0.5


def heartbeat_file(folder: Path, pid: int) -> Path:
    """The file whose modification time is the last sign of life; `folder`: the server's temporary one."""
    return folder / FOLDER / str(pid)


def begin_heartbeat() -> None:
    """Touch this process's file from now on, from a thread that no computation holds up for long."""
    path = heartbeat_file(Path(tempfile.gettempdir()), os.getpid())
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch()
    except OSError as err:
        log.warning("no heartbeat (%s): a hung worker is noticed by its timeouts alone", err.strerror)
        return
    threading.Thread(target=beat, args=(path,), name="heartbeat", daemon=True).start()


def beat(path: Path) -> None:
    """For ever. A full disk does not keep a file from being touched; a folder that was removed ends the beat."""
    while True:
        time.sleep(EVERY_S)
        try:
            os.utime(path)
        except OSError:
            return
