"""Where this installation came from, so that another machine can install the same."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

DISTRIBUTION = "torchserve-marctl"
RECORD = "direct_url.json"
"""PEP 610: pip writes it where a distribution did not come from a package index."""


@dataclass(frozen=True)
class Origin:
    """`requirement`: a line for pip. `folder`: of the sources that it was installed from."""

    requirement: str
    wheel: Path | None = None
    """The file that it was installed from, if it is still there."""
    needs_wheel: bool = False
    """Whether pip finds it in no index, so that the wheel must be at hand."""
    folder: str = ""

    @property
    def how_to_wheel(self) -> str:
        return f"pip wheel --no-deps --wheel-dir wheels {self.folder or 'FOLDER-OF-ITS-SOURCES'}"


def origin() -> Origin:
    """This installation's."""
    found = importlib.metadata.distribution(DISTRIBUTION)
    return origin_of(found.version, found.read_text(RECORD))


def origin_of(version: str, record: str | None) -> Origin:
    """By the version and the text of direct_url.json, None where there is none."""
    pinned = f"{DISTRIBUTION}=={version}"
    if record is None:
        return Origin(pinned)
    content = msgspec.json.decode(record)
    url = content["url"]
    if "vcs_info" in content:
        control = content["vcs_info"]
        return Origin(f"{DISTRIBUTION} @ {control['vcs']}+{url}@{control['commit_id']}")
    if urlsplit(url).scheme != "file":
        return Origin(f"{DISTRIBUTION} @ {url}")
    path = Path(unquote(urlsplit(url).path))
    if path.suffix == ".whl":
        return Origin(pinned, wheel=path if path.is_file() else None, needs_wheel=True)
    return Origin(pinned, needs_wheel=True, folder=str(path))
