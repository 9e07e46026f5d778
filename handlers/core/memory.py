"""The C library's memory (glibc's malloc.h): what a worker keeps of it between two batches, and how much is in use.

Where the library is another than glibc, nothing changes and nothing is known.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
ARENA_MAX = -8
KEPT_BYTES = 1 << 28
BLOCK_BYTES = 1 << 18
"""Where memory is to be given back, blocks from here on are the kernel's again as soon as they are freed."""


class Mallinfo2(ctypes.Structure):
    """Sizes in bytes, over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


@cache
def function(name: str) -> Any:
    """One of the library's; None where it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None


def keep_memory() -> None:
    """Let the library keep freed memory instead of giving it back to the kernel, which clears it for the next pass."""
    if mallopt := function("mallopt"):
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(MMAP_THRESHOLD, KEPT_BYTES)


def share_memory() -> None:
    """For a process whose models come and go: large blocks are given back at once, and the threads that load share one
    arena, so that what one has freed the next one can use."""
    if mallopt := function("mallopt"):
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_THRESHOLD, BLOCK_BYTES)


def allocated_bytes() -> int:
    """In use by this process, however much the library keeps besides; 0 if that is not known."""
    mallinfo2 = function("mallinfo2")
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = Mallinfo2
    found = mallinfo2()
    return int(found.uordblks) + int(found.hblkhd)


def give_back() -> None:
    """Free pages to the kernel."""
    if malloc_trim := function("malloc_trim"):
        malloc_trim(0)
