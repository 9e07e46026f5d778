"""Root file of every archive: TorchServe imports it and calls `handle`."""

from __future__ import annotations

try:
    from marctl_handlers.torchserve.adapter import handle
except ImportError as err:
    # TorchServe answers an ImportError by looking for a built-in handler of the same name, and reports that instead.
    raise RuntimeError(f"LoadError: the archive's handlers need a library that is not installed: {err}") from err

__all__ = ["handle"]
