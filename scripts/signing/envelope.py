"""An archive's signatures, in the file ARCHIVE.mar.sig beside it, so that the archive's own bytes stay the same.

The form is a DSSE envelope (Dead Simple Signing Envelope 1.0, secure-systems-lab/dsse): a statement and signatures over
it and its type, so that a signature of anything else can never be taken for one.

    {"payload": base64 of {"model": "mcqa", "version": "2.0", "sha256": "60303..."},
     "payloadType": "application/vnd.marctl.archive+json",
     "signatures": [{"keyid": "3f2a...", "sig": base64}]}
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from marctl.core.errors import UserError
from marctl.core.files import write_atomically
from marctl.signing.keys import key_id
from marctl.signing.statement import Statement

SUFFIX = ".sig"
PAYLOAD_TYPE = "application/vnd.marctl.archive+json"
MOST_BYTES = 64 << 10


class SignatureInvalid(UserError):
    """A signature file is not one."""


class Signature(Struct, frozen=True):
    """`keyid` tells which key to try; it proves nothing."""

    keyid: str
    sig: bytes


class Envelope(Struct, frozen=True, rename="camel"):
    """Base64 in JSON where the type here is `bytes`."""

    payload: bytes
    payload_type: str
    signatures: list[Signature]

    @property
    def signed_bytes(self) -> bytes:
        """DSSE's pre-authentication encoding: lengths keep the two parts apart."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)

    @property
    def statement(self) -> Statement:
        """To be believed only after a signature was found to be good. Raises SignatureInvalid."""
        if self.payload_type != PAYLOAD_TYPE:
            raise SignatureInvalid(f"it signs {self.payload_type!r}, expected {PAYLOAD_TYPE!r}")
        try:
            return msgspec.json.decode(self.payload, type=Statement)
        except msgspec.DecodeError as err:
            raise SignatureInvalid(f"what it signs is no statement of an archive: {err}") from err

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether one of the signatures is this key's."""
        name = key_id(key)
        for signature in self.signatures:
            if signature.keyid == name:
                with suppress(InvalidSignature):
                    key.verify(signature.sig, self.signed_bytes)
                    return True
        return False


def signature_file(archive: Path) -> Path:
    """Where an archive's signatures are."""
    return archive.with_name(archive.name + SUFFIX)


def read_envelope(archive: Path) -> Envelope | None:
    """An archive's signatures, None for one without. Raises SignatureInvalid."""
    path = signature_file(archive)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise SignatureInvalid(f"{path}: cannot be read: {err.strerror or err}") from err
    if len(content) > MOST_BYTES:
        raise SignatureInvalid(f"{path}: more than {MOST_BYTES} bytes are no signature")
    try:
        return msgspec.json.decode(content, type=Envelope)
    except msgspec.DecodeError as err:
        raise SignatureInvalid(f"{path}: no signature of `marctl sign`: {err}") from err


def sign(archive: Path, statement: Statement, key: Ed25519PrivateKey) -> str:
    """Write the signature beside the archive, among those that others made of the same statement; returns the key's id.

    A file that signs something else, or is damaged, is replaced. Raises WriteFailed.
    """
    there: Envelope | None = None
    with suppress(SignatureInvalid):
        there = read_envelope(archive)
    payload = msgspec.json.encode(statement, order="sorted")
    unsigned = Envelope(payload, PAYLOAD_TYPE, [])
    same = there is not None and there.signed_bytes == unsigned.signed_bytes
    name = key_id(key.public_key())
    others = [each for each in there.signatures if each.keyid != name] if there is not None and same else []
    signatures = [*others, Signature(name, key.sign(unsigned.signed_bytes))]
    signed = msgspec.structs.replace(unsigned, signatures=signatures)
    write_atomically(signature_file(archive), msgspec.json.format(msgspec.json.encode(signed), indent=1) + b"\n")
    return name
