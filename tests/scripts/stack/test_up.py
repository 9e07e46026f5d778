from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable

import pytest

from marctl.stack.up import Terminated, terminable

LONG_S = 5.0


class Pool:
    """Something that is closed when it goes away."""


class Closing:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def interrupted(cause: Callable[[], object]) -> None:
    """Run the cause of a signal in the block; a lost one lets the block go on to its end."""
    with terminable():
        cause()
        time.sleep(LONG_S)


def drop_pool() -> None:
    weakref.finalize(Pool(), os.kill, os.getpid(), signal.SIGTERM)


def test_a_signal_ends_the_block() -> None:
    with pytest.raises(Terminated):
        interrupted(lambda: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("cause", [drop_pool, Closing], ids=["finalize", "__del__"])
def test_a_signal_that_comes_while_an_object_is_finalized_is_not_lost(cause: Callable[[], object]) -> None:
    with pytest.raises(Terminated):
        interrupted(cause)
