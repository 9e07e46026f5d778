"""Memory that a worker keeps between two batches."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
"""Of mallopt, glibc's malloc.h."""
KEPT_BYTES = 1 << 28


def keep_memory() -> None:
    """Let the C library keep freed memory instead of giving it back to the kernel, which clears it for the next pass.

    Where the library is another than glibc, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(MMAP_THRESHOLD, KEPT_BYTES)
