"""Confines paths that come from somewhere else to configured folders: nothing above them, beside them, or linked to."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

from marctl.batch.places import SCHEME, Place, place_of
from marctl.core.errors import UserError

FORBIDDEN = "?#%@\\"
"""In a URI: a query could name another server to ask, and an escaped character another path than the one that is
compared."""


class OutsideRoots(UserError):
    """A path that is not below any folder that was configured."""


def refuse_outside(text: str, roots: Sequence[str]) -> None:
    """Raise OutsideRoots unless a path, pattern or URI is below one of the roots. Links in it are followed."""
    if any(is_below(text, root) for root in roots):
        return
    allowed = ", ".join(roots) or "nowhere; none is configured"
    raise OutsideRoots(f"{text[:200]!r} is not below a folder that may be used; allowed: {allowed}")


def refuse_files_outside(places: Iterable[Place], roots: Sequence[str]) -> None:
    """The same for the files that patterns and folders stand for: a link among them may lead elsewhere."""
    for place in places:
        refuse_outside(place.text, roots)


def is_below(text: str, root: str) -> bool:
    if any(ord(character) < 32 for character in text):
        return False
    if SCHEME.match(root):
        return is_below_uri(text, root)
    if "://" in text or not text.startswith("/") or ".." in text.split("/"):
        return False
    base = Path(root).resolve()
    return Path(text).resolve().is_relative_to(base)


def is_below_uri(text: str, root: str) -> bool:
    if any(character in text for character in FORBIDDEN):
        return False
    scheme, mark, path = text.partition("://")
    own_scheme, _, own_path = root.partition("://")
    parts = path.split("/")
    if not mark or scheme.lower() != own_scheme.lower() or ".." in parts or "." in parts:
        return False
    base = own_path.rstrip("/")
    return posixpath.normpath(path).startswith(f"{base}/")


def checked_roots(texts: Sequence[str]) -> list[str]:
    """Absolute, and such that they can be opened. Raises UserError."""
    found = []
    for text in texts:
        if SCHEME.match(text):
            place_of(text)
            found.append(text.rstrip("/"))
        elif Path(text).is_dir():
            found.append(str(Path(text).resolve()))
        else:
            raise UserError(f"{text}: no such folder")
    return found
