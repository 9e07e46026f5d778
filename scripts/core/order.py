"""The order of versions."""

from __future__ import annotations

from functools import lru_cache

from packaging.version import InvalidVersion, Version


@lru_cache(4096)
def version_order(version: str) -> tuple[int, Version, str]:
    """Sort key: 1.10 after 1.9; what is no version number comes before all that are."""
    try:
        return 1, Version(version), ""
    except InvalidVersion:
        return 0, Version("0"), version
