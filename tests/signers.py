"""Key pairs of a test's own, and the folder of those that are trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from marctl.build.reader import read_archive
from marctl.signing.envelope import sign
from marctl.signing.keys import new_pair, read_private
from marctl.signing.trust import Trust


class Signers:
    """`folder` holds both: `signers/` the pairs, `keys/` the trusted public ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "signers"
        self.trust = Trust(folder / "keys")
        self.trust.folder.mkdir(parents=True, exist_ok=True)

    def key(self, name: str, *, trusted: bool) -> Ed25519PrivateKey:
        """A new pair."""
        private, public = new_pair(self.folder, name)
        if trusted:
            shutil.copy(public, self.trust.folder)
        return read_private(private)

    def check(self, archive: Path) -> str:
        return self.trust.check(archive, read_archive(archive).statement)

    def write(self, name: str, *lines: str) -> None:
        (self.trust.folder / name).write_text("\n".join(lines) + "\n")


def signed(archive: Path, *keys: Ed25519PrivateKey) -> Path:
    """The same archive, with these keys' signatures beside it."""
    for key in keys:
        sign(archive, read_archive(archive).statement, key)
    return archive
