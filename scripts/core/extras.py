"""What to install for a part that needs more libraries than every installation has."""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

DISTRIBUTION = "torchserve-marctl"


def install(extra: str) -> str:
    """The command that brings an extra's libraries, whichever way this project itself was installed."""
    try:
        needed = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        needed = []
    own = [one for one in needed if one.marker and not one.marker.evaluate({"extra": ""})]
    found = [f"{one.name}{one.specifier}" for one in own if one.marker and one.marker.evaluate({"extra": extra})]
    return f"pip install {' '.join(map(shlex.quote, found))}" if found else f"install this project's extra {extra}"
