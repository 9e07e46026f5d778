"""Whose archives may be loaded: a folder of public keys, which is read anew whenever an archive is to be loaded.

    keys/alice.pub      a public key in PEM form; `.pem` does as well. Its file's name is the signer's name.
    keys/allowed.txt    digests of archives that need no signature, one a line: sha256:60303...  # mcqa 2.0
    keys/revoked.txt    digests of archives, or ids of keys, that are refused whatever signs or lists them

So a key is added, replaced and taken away without a restart. Whatever of the folder cannot be read trusts nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from marctl.core.errors import UserError
from marctl.signing.envelope import Envelope, SignatureInvalid, read_envelope, signature_file
from marctl.signing.keys import SHORT, KeyInvalid, key_id, read_public
from marctl.signing.statement import Statement

ALLOWED, REVOKED = "allowed.txt", "revoked.txt"
KEY_SUFFIXES = {".pub", ".pem"}
DIGEST_LINE = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\s.*)?")
Stamp = tuple[tuple[str, int, int, int], ...]


class NotTrusted(UserError):
    """An archive may not be loaded: nobody who is trusted has signed it."""


class Revoked(NotTrusted):
    """An archive may not even go on running: it is revoked, or the key that signed it is."""


@dataclass(frozen=True)
class Keyring:
    """A folder's content at one moment."""

    keys: Mapping[str, Ed25519PublicKey]
    """By the signer's name."""
    allowed: frozenset[str]
    revoked: frozenset[str]
    faults: tuple[str, ...]
    """Files that hold no public key."""


@dataclass(frozen=True)
class Trust:
    """A folder of trusted keys."""

    folder: Path

    def check(self, archive: Path, statement: Statement) -> str:
        """Who vouches for an archive: the name of a key, or of the list. `statement`: what the archive is.

        Raises NotTrusted, or Revoked, saying why and what to do.
        """
        ring = self.read()
        who = f"{archive}: {statement.model} {statement.version}"
        if statement.sha256 in ring.revoked:
            raise Revoked(f"{who} is not loaded: {self.folder / REVOKED} lists its digest {statement.sha256}")
        if statement.sha256 in ring.allowed:
            return ALLOWED
        try:
            envelope = read_envelope(archive)
            if envelope is None:
                raise NotTrusted(
                    f"{who} is not loaded: it is not signed, there is no {signature_file(archive).name} beside it; "
                    f"`marctl sign {archive} --key KEY` makes one, or list its digest in {self.folder / ALLOWED}"
                )
            signer = self.signer_of(envelope, ring, who)
            signed = envelope.statement
        except SignatureInvalid as err:
            raise NotTrusted(f"{who} is not loaded: {err}") from err
        if signed != statement:
            raise NotTrusted(
                f"{who} is not loaded: {signer} signed {signed}, and this archive is {statement}; "
                "it was altered after it was signed, or has another one's signature"
            )
        return signer

    def signer_of(self, envelope: Envelope, ring: Keyring, who: str) -> str:
        """The trusted key that made one of the signatures. Raises NotTrusted or Revoked."""
        revoked = []
        for name, key in ring.keys.items():
            if envelope.is_signed_by(key):
                if key_id(key) not in ring.revoked:
                    return name
                revoked.append(name)
        named = [each.keyid for each in envelope.signatures]
        if revoked or set(named) & ring.revoked:
            listed = ", ".join(revoked or sorted(set(named) & ring.revoked))
            raise Revoked(
                f"{who} is not loaded: the key {listed}, which signed it, is revoked by {self.folder / REVOKED}"
            )
        known = {key_id(key): name for name, key in ring.keys.items()}
        if wrong := sorted({known[name] for name in named if name in known}):
            raise NotTrusted(
                f"{who} is not loaded: its signature by {', '.join(wrong)} is not that key's; sign it anew"
            )
        keys = ", ".join(name[:SHORT] for name in named) or "nobody"
        faults = "".join(f"\n  {fault}" for fault in ring.faults)
        raise NotTrusted(
            f"{who} is not loaded: it is signed by {keys}, which is no key in {self.folder}; "
            f"there are: {', '.join(sorted(ring.keys)) or 'none'}{faults}"
        )

    def read(self) -> Keyring:
        """Raises NotTrusted if the folder or one of its lists cannot be read."""
        keys: dict[str, Ed25519PublicKey] = {}
        faults: list[str] = []
        try:
            files = sorted(path for path in self.folder.iterdir() if path.suffix in KEY_SUFFIXES)
        except OSError as err:
            raise NotTrusted(f"{self.folder}: no trusted keys can be read: {err.strerror or err}") from err
        for path in files:
            try:
                keys[path.stem] = read_public(path)
            except KeyInvalid as err:
                faults.append(str(err))
        return Keyring(keys, digests(self.folder / ALLOWED), digests(self.folder / REVOKED), tuple(faults))

    def stamp(self) -> Stamp:
        """Changes when the folder's content does; empty while it cannot be read."""
        found = []
        try:
            for path in sorted(self.folder.iterdir()):
                status = path.stat()
                found.append((path.name, status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            return ()
        return tuple(found)


def digests(path: Path) -> frozenset[str]:
    """SHA-256 digests, one a line; empty if the file is not there. Raises NotTrusted for any other line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as err:
        raise NotTrusted(f"{path}: cannot be read: {err}") from err
    found = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = DIGEST_LINE.fullmatch(text)
        if match is None:
            raise NotTrusted(f"{path}:{number}: expected sha256:, 64 digits 0-9 a-f, and a comment after #")
        found.add(match[1])
    return frozenset(found)


def refuse_empty(trust: Trust) -> None:
    """Raise UserError for a folder that trusts nobody, as an operator who names it does not mean."""
    ring = trust.read()
    if not ring.keys and not ring.allowed:
        faults = "".join(f"\n  {fault}" for fault in ring.faults)
        raise UserError(
            f"{trust.folder}: no public key (NAME.pub) and no {ALLOWED} in it; nothing could be loaded{faults}"
        )
