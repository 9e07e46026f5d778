"""Files that Envoy watches: what they hold, and a name by which it tells which one it has."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from marctl.gateway.names import Json


@dataclass(frozen=True)
class Discovery:
    """A watched file's content, named by its own hash."""

    version: str
    text: bytes

    @classmethod
    def of(cls, resources: list[Json]) -> Discovery:
        encoded = msgspec.json.encode(resources)
        version = sha256(encoded).hexdigest()[:16]
        return cls(version, b'{"version_info":"%s","resources":%s}\n' % (version.encode(), encoded))

    @classmethod
    def read(cls, path: Path) -> Discovery | None:
        """What a watched file holds; None for one that is missing or damaged."""
        with suppress(OSError, TypeError, KeyError, msgspec.DecodeError):
            text = path.read_bytes()
            return cls(msgspec.json.decode(text)["version_info"], text)
        return None


def together(*texts: bytes | None) -> Discovery:
    """The clusters of several files; of two of a name the last one. A file that is missing or damaged has none."""
    clusters: Json = {}
    for text in texts:
        with suppress(TypeError, KeyError, msgspec.DecodeError):
            clusters |= {cluster["name"]: cluster for cluster in msgspec.json.decode(text or b"")["resources"]}
    return Discovery.of(list(clusters.values()))
