"""Which archives a folder of keys lets in, and what is said to the others."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from marctl.build.reader import read_archive
from marctl.core.errors import UserError
from marctl.signing.envelope import signature_file
from marctl.signing.keys import key_id, read_public
from marctl.signing.trust import NotTrusted, Revoked, refuse_empty
from tests.signers import Signers, signed
from tests.tiny_archives import FAILS_TO_LOAD, tiny_archive


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return Signers(tmp_path)


def test_an_archive_signed_by_a_trusted_key_is_let_in(signers: Signers, tmp_path: Path) -> None:
    bob, alice = signers.key("bob", trusted=True), signers.key("alice", trusted=True)
    assert signers.check(signed(tiny_archive(tmp_path), bob)) == "bob"
    assert signers.check(signed(tiny_archive(tmp_path, version="2.0"), alice)) == "alice"


def test_an_unsigned_archive_is_refused(signers: Signers, tmp_path: Path) -> None:
    signers.key("alice", trusted=True)
    with pytest.raises(NotTrusted, match=r"mcqa 1\.0 is not loaded: it is not signed.*mcqa-1\.0\.mar\.sig"):
        signers.check(tiny_archive(tmp_path))


def test_a_stranger_is_refused_by_name(signers: Signers, tmp_path: Path) -> None:
    signers.key("alice", trusted=True)
    stranger = signers.key("stranger", trusted=False)
    archive = signed(tiny_archive(tmp_path), stranger)
    with pytest.raises(NotTrusted, match=rf"signed by {key_id(stranger.public_key())[:16]}, which is no key.*alice"):
        signers.check(archive)


def test_an_altered_archive_is_refused(signers: Signers, tmp_path: Path) -> None:
    archive = signed(tiny_archive(tmp_path), signers.key("alice", trusted=True))
    tiny_archive(tmp_path, handler=FAILS_TO_LOAD)
    with pytest.raises(NotTrusted, match=r"alice signed mcqa 1\.0, sha256 .* altered after it was signed"):
        signers.check(archive)


def test_a_signature_of_another_version_or_model_is_refused(signers: Signers, tmp_path: Path) -> None:
    alice = signers.key("alice", trusted=True)
    signature = signature_file(signed(tiny_archive(tmp_path), alice))
    for archive in (tiny_archive(tmp_path, version="2.0"), tiny_archive(tmp_path, "embed", "1.0")):
        shutil.copy(signature, signature_file(archive))
        with pytest.raises(NotTrusted, match=r"alice signed mcqa 1\.0.*this archive is (mcqa 2\.0|embed 1\.0)"):
            signers.check(archive)


@pytest.mark.parametrize("part", ["payload", "payloadType", "sig"])
def test_no_part_of_a_signature_may_change(signers: Signers, tmp_path: Path, part: str) -> None:
    archive = signed(tiny_archive(tmp_path), signers.key("alice", trusted=True))
    path = signature_file(archive)
    content = json.loads(path.read_text())
    if part == "payloadType":
        content[part] += "x"
    else:
        where = content["signatures"][0] if part == "sig" else content
        raw = bytearray(base64.b64decode(where[part]))
        raw[-2] ^= 1
        where[part] = base64.b64encode(raw).decode()
    path.write_text(json.dumps(content))
    with pytest.raises(NotTrusted, match="its signature by alice is not that key's"):
        signers.check(archive)


def test_a_key_id_alone_proves_nothing(signers: Signers, tmp_path: Path) -> None:
    alice, stranger = signers.key("alice", trusted=True), signers.key("stranger", trusted=False)
    archive = signed(tiny_archive(tmp_path), stranger)
    path = signature_file(archive)
    ids = [key_id(key.public_key()) for key in (stranger, alice)]
    path.write_text(path.read_text().replace(*ids))
    with pytest.raises(NotTrusted, match="its signature by alice is not that key's"):
        signers.check(archive)


@pytest.mark.parametrize("content", [b"", b"noise", b"[]", b'{"payload": 3}', b"{" * 70_000, b"\xff" * 10])
def test_a_damaged_signature_is_refused_with_its_place(signers: Signers, tmp_path: Path, content: bytes) -> None:
    signers.key("alice", trusted=True)
    archive = tiny_archive(tmp_path)
    signature_file(archive).write_bytes(content)
    with pytest.raises(NotTrusted, match=r"mcqa-1\.0\.mar\.sig"):
        signers.check(archive)


def test_keys_rotate_while_others_are_trusted(signers: Signers, tmp_path: Path) -> None:
    """The archive gets the second signature, then the first key goes: at no time is it refused."""
    old = signers.key("old", trusted=True)
    archive = signed(tiny_archive(tmp_path), old)
    signed(archive, signers.key("new", trusted=True))
    assert signers.check(archive) in ("old", "new")
    before = signers.trust.stamp()
    (signers.trust.folder / "old.pub").unlink()
    assert signers.trust.stamp() != before
    assert signers.check(archive) == "new"
    with pytest.raises(NotTrusted, match="no key in"):
        signers.check(signed(tiny_archive(tmp_path, version="2.0"), old))


def test_a_revoked_key_is_refused_and_another_signature_still_counts(signers: Signers, tmp_path: Path) -> None:
    old, new = signers.key("old", trusted=True), signers.key("new", trusted=True)
    archive = signed(tiny_archive(tmp_path), old)
    signers.write("revoked.txt", "# stolen on Monday", f"{key_id(old.public_key())}  # old")
    with pytest.raises(Revoked, match="the key old, which signed it, is revoked"):
        signers.check(archive)
    (signers.trust.folder / "old.pub").unlink()
    with pytest.raises(Revoked, match="is revoked"):
        signers.check(archive)
    assert signers.check(signed(archive, new)) == "new"


def test_digests_are_allowed_and_revoked_one_by_one(signers: Signers, tmp_path: Path) -> None:
    archive = tiny_archive(tmp_path)
    digest = read_archive(archive).sha256
    signers.write("allowed.txt", f"{digest}  mcqa-1.0.mar")
    assert signers.check(archive) == "allowed.txt"
    signers.write("revoked.txt", f"sha256:{digest}")
    with pytest.raises(Revoked, match="lists its digest"):
        signers.check(archive)
    signed(archive, signers.key("alice", trusted=True))
    with pytest.raises(Revoked):
        signers.check(archive)


@pytest.mark.parametrize("name", ["allowed.txt", "revoked.txt"])
def test_a_list_that_cannot_be_read_lets_nothing_in(signers: Signers, tmp_path: Path, name: str) -> None:
    archive = signed(tiny_archive(tmp_path), signers.key("alice", trusted=True))
    signers.write(name, "", "mcqa 2.0")
    with pytest.raises(NotTrusted, match=rf"{name}:2: expected sha256:"):
        signers.check(archive)


def test_a_folder_that_is_gone_lets_nothing_in(signers: Signers, tmp_path: Path) -> None:
    archive = signed(tiny_archive(tmp_path), signers.key("alice", trusted=True))
    signers.trust.folder.rename(tmp_path / "away")
    assert signers.trust.stamp() == ()
    with pytest.raises(NotTrusted, match="no trusted keys can be read"):
        signers.check(archive)


def test_a_bad_key_file_bars_no_good_one_and_is_told(signers: Signers, tmp_path: Path) -> None:
    archive = signed(tiny_archive(tmp_path), signers.key("alice", trusted=True))
    shutil.copy(signers.folder / "alice.key", signers.trust.folder / "oops.pem")
    assert signers.check(archive) == "alice"
    (signers.trust.folder / "alice.pub").unlink()
    with pytest.raises(NotTrusted, match=r"oops\.pem: a private key; only public ones belong here"):
        signers.check(archive)


def test_a_folder_that_trusts_nobody_is_misuse(signers: Signers, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no public key \(NAME\.pub\)"):
        refuse_empty(signers.trust)
    signers.key("alice", trusted=True)
    refuse_empty(signers.trust)
    assert read_public(signers.trust.folder / "alice.pub")
