"""The autoscaler as a process of its own: `marctl up --autoscale` starts it, `marctl autoscale` is it.

python -m marctl.capacity.run STATE [SETTINGS]
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from types import FrameType

from marctl.capacity.autoscaler import Autoscaler, Outcome
from marctl.capacity.settings import Settings, read_settings
from marctl.core.errors import UserError
from marctl.core.sole import holder, sole_holder
from marctl.stack.look import running_stack
from marctl.stack.state import State
from marctl_handlers.core.log_lines import line


class AutoscalerRuns(UserError):
    """Two would undo each other's work."""


def already_running(state: State) -> AutoscalerRuns:
    found = holder(state.autoscaler_lock)
    pid = f"pid {found.pid}" if found else "pid unknown"
    return AutoscalerRuns(f"an autoscaler of {state.folder} runs already ({pid}); end that one first, or use --dry-run")


def scale(
    state: State,
    settings: Settings,
    tell: Callable[[Outcome], None],
    *,
    dry_run: bool = False,
    once: bool = False,
    ending: Event | None = None,
) -> None:
    """Until `ending` is set, or `once`. A dry run may go on beside another autoscaler.

    Raises AutoscalerRuns, FollowsPlace, WriteFailed where no lock can be written, and with `once` NotRunning.
    """
    if not dry_run:
        state.create()
    with nullcontext() if dry_run else sole_holder(state.autoscaler_lock, lambda: already_running(state)):
        autoscaler = Autoscaler(state, settings, tell, dry_run=dry_run)
        if once:
            running_stack(state)
            autoscaler.once()
        else:
            autoscaler.run(ending or Event())


def main(folder: str, config: str = "") -> int:
    """What it does goes to its standard output, as lines of the stack's log."""
    ending = Event()

    def end(_: int, __: FrameType | None) -> None:
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)

    def log(level: str, message: str) -> None:
        sys.stdout.write(line("autoscaler", level, message) + "\n")
        sys.stdout.flush()

    try:
        settings = read_settings(Path(config) if config else None)
        scale(State(Path(folder)), settings, lambda outcome: log("info", str(outcome)), ending=ending)
    except UserError as err:
        log("error", str(err))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
