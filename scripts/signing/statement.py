"""What a signature says."""

from __future__ import annotations

from msgspec import Struct


class Statement(Struct, frozen=True):
    """That this content is this version of this model."""

    model: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.model} {self.version}, sha256 {self.sha256[:16]}..."
