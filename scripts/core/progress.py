"""Progress on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 30.0


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yields a function to call once per finished unit, with a short remark to show and, if it is not one, how many."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[remark]}"), console=console) as bar:
            task = bar.add_task(title, total=total, completed=done, remark="")
            yield lambda remark, by=1: bar.update(task, advance=by, remark=remark)
        return
    started = shown = time.monotonic()
    count = 0

    def advance(remark: str, by: int = 1) -> None:
        nonlocal shown, count
        count += by
        now = time.monotonic()
        if now - shown >= LOG_EVERY_S or done + count == total:
            shown = now
            left_s = (now - started) / count * (total - done - count)
            print(
                f"{title}: {done + count}/{total}, {left_s:.0f} s left {remark}".rstrip(), file=sys.stderr, flush=True
            )

    yield advance
