"""Keys and signatures, beside OpenSSL's own."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from marctl.build.reader import read_archive
from marctl.core.errors import UserError
from marctl.signing.envelope import read_envelope, sign, signature_file
from marctl.signing.keys import KeyInvalid, KeyLocked, key_id, new_pair, read_private, read_public
from tests.tiny_archives import tiny_archive

with_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


def openssl(*arguments: object, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=True).stdout


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    private, public = new_pair(tmp_path, "release")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert key_id(read_private(private).public_key()) == key_id(read_public(public))
    private.chmod(0o640)
    with pytest.raises(KeyInvalid, match=r"chmod 600"):
        read_private(private)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, _ = new_pair(tmp_path, "release")
    before = private.read_bytes()
    with pytest.raises(UserError, match="exists"):
        new_pair(tmp_path, "release")
    assert private.read_bytes() == before


def test_a_passphrase_is_asked_for(tmp_path: Path) -> None:
    private, _ = new_pair(tmp_path, "release", b"open sesame")
    assert b"ENCRYPTED" in private.read_bytes()
    for wrong in (None, b"sesame"):
        with pytest.raises(KeyLocked):
            read_private(private, wrong)
    assert read_private(private, b"open sesame")


def test_other_keys_are_told_apart(tmp_path: Path) -> None:
    private, public = new_pair(tmp_path, "release")
    with pytest.raises(KeyInvalid, match="only public ones belong here"):
        read_public(private)
    public.chmod(0o600)
    with pytest.raises(KeyInvalid, match="no private key"):
        read_private(public)
    (tmp_path / "noise.pub").write_text("noise")
    with pytest.raises(KeyInvalid, match="no public key in PEM form"):
        read_public(tmp_path / "noise.pub")


@with_openssl
def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    key, public = tmp_path / "ec.key", tmp_path / "ec.pub"
    key.write_bytes(openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"))
    public.write_bytes(openssl("pkey", "-in", key, "-pubout"))
    key.chmod(0o600)
    for read, path in ((read_private, key), (read_public, public)):
        with pytest.raises(KeyInvalid, match="expected an Ed25519 key"):
            read(path)


@with_openssl
def test_openssl_and_marctl_make_and_check_the_same_keys_and_signatures(tmp_path: Path) -> None:
    key, public = tmp_path / "o.key", tmp_path / "o.pub"
    key.write_bytes(openssl("genpkey", "-algorithm", "ed25519"))
    key.chmod(0o600)
    public.write_bytes(openssl("pkey", "-in", key, "-pubout"))
    archive = tiny_archive(tmp_path)
    name = sign(archive, read_archive(archive).statement, read_private(key))
    assert name == hashlib.sha256(openssl("pkey", "-pubin", "-in", public, "-outform", "DER")).hexdigest()

    told = json.loads(signature_file(archive).read_bytes())
    payload, kind = base64.b64decode(told["payload"]), told["payloadType"].encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(told["signatures"][0]["sig"]))
    check = ["pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", tmp_path / "signed"]
    assert b"Signature Verified Successfully" in openssl(*check, "-sigfile", tmp_path / "sig")
    assert json.loads(payload) == {
        "model": "mcqa",
        "version": "1.0",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }


def test_several_keys_sign_the_same_archive(tmp_path: Path) -> None:
    archive = tiny_archive(tmp_path)
    keys = [read_private(new_pair(tmp_path, name)[0]) for name in ("old", "new")]
    for key in [*keys, keys[0]]:
        sign(archive, read_archive(archive).statement, key)
    envelope = read_envelope(archive)
    assert envelope is not None
    assert len(envelope.signatures) == 2
    assert all(envelope.is_signed_by(key.public_key()) for key in keys)


def test_signatures_of_a_former_content_do_not_stay(tmp_path: Path) -> None:
    archive = tiny_archive(tmp_path)
    old, new = (read_private(new_pair(tmp_path, name)[0]) for name in ("old", "new"))
    sign(archive, read_archive(archive).statement, old)
    tiny_archive(tmp_path, samples=False)
    sign(archive, read_archive(archive).statement, new)
    envelope = read_envelope(archive)
    assert envelope is not None
    assert [each.keyid for each in envelope.signatures] == [key_id(new.public_key())]
