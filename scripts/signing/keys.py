"""Ed25519 keys (RFC 8032) as PEM files, in the form that OpenSSL reads and writes, too.

openssl genpkey -algorithm ed25519 -out release.key
openssl pkey -in release.key -pubout -out release.pub
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marctl.core.errors import UserError
from marctl.core.files import write_failed

PRIVATE, PUBLIC = ".key", ".pub"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
SHORT = 16
"""Digits of a key's id that people read."""


class KeyInvalid(UserError):
    """A file holds no key of the kind that was expected."""


class KeyLocked(UserError):
    """A private key is protected by a passphrase, and none or a wrong one was given."""


def new_pair(folder: Path, name: str, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """Write NAME.key and NAME.pub; returns both paths. Raises UserError if one of them is there, or WriteFailed."""
    private, public = folder / f"{name}{PRIVATE}", folder / f"{name}{PUBLIC}"
    for path in (private, public):
        if path.exists():
            raise UserError(f"{path} exists; a key is never overwritten, choose another name")
    key = Ed25519PrivateKey.generate()
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    write_once(private, key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, lock), 0o600)
    write_once(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    return private, public


def write_once(path: Path, content: bytes, mode: int) -> None:
    """A file that was not there, never readable by others than `mode` says. Raises WriteFailed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except OSError as err:
        raise write_failed(path, err) from err


def read_private(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Raises KeyInvalid, also for a file that others may read, and KeyLocked."""
    content = read(path)
    if path.stat().st_mode & OTHERS:
        raise KeyInvalid(f"{path}: a private key that other users may read is none; chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, passphrase)
    except TypeError as err:
        raise KeyLocked(f"{path}: {err}") from err
    except (ValueError, UnsupportedAlgorithm) as err:
        if passphrase is not None:
            raise KeyLocked(f"{path}: the passphrase is not this key's") from err
        raise KeyInvalid(f"{path}: no private key in PEM form; make one with `marctl keys new`") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyInvalid(f"{path}: expected an Ed25519 key, got {type(key).__name__.removesuffix('PrivateKey')}")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Raises KeyInvalid."""
    content = read(path)
    if b"PRIVATE KEY" in content:
        raise KeyInvalid(f"{path}: a private key; only public ones belong here: openssl pkey -in KEY -pubout")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise KeyInvalid(f"{path}: no public key in PEM form") from err
    if not isinstance(key, Ed25519PublicKey):
        raise KeyInvalid(f"{path}: expected an Ed25519 key, got {type(key).__name__.removesuffix('PublicKey')}")
    return key


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise KeyInvalid(f"{path}: cannot be read: {err.strerror or err}") from err


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's DER form, as `openssl pkey -pubin -in KEY -outform DER | sha256sum` prints it."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
