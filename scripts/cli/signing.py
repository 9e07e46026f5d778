"""`marctl sign`, `verify` and `keys`: who vouches for an archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from marctl.cli.group import Group
from marctl.cli.output import json_option, result

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ARCHIVE = click.Path(dir_okay=False, path_type=Path)


def unlock(key: Path) -> Ed25519PrivateKey:
    """A private key, after a question for its passphrase if it has one. Raises UserError."""
    from marctl.signing.keys import KeyLocked, read_private

    try:
        return read_private(key)
    except KeyLocked:
        return read_private(key, click.prompt(f"passphrase of {key}", hide_input=True, err=True).encode())


@click.command()
@json_option
@click.argument("file", type=ARCHIVE)
@click.option("--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Private key.")
def sign(file: Path, key: Path) -> None:
    """Vouch for an archive that was built elsewhere, by a signature beside it.

    It goes into FILE.sig, with the signatures that others have made of the same archive. What `marctl build` makes is
    signed by `build --sign`.

    Example: marctl sign theirs.mar --key release.key
    """
    from marctl.build.reader import read_archive
    from marctl.signing.envelope import sign, signature_file

    archive = read_archive(file)
    name = sign(file, archive.statement, unlock(key))
    content = {"archive": str(file), "signature": str(signature_file(file)), "key": name, "sha256": archive.sha256}
    result(content, f"{signature_file(file)}: {archive.statement}, signed by key {name[:16]}...")


@click.command()
@json_option
@click.argument("files", nargs=-1, required=True, type=ARCHIVE)
@click.option(
    "--keys",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the public keys that you trust.",
)
def verify(files: tuple[Path, ...], keys: Path) -> None:
    """Check who has signed archives, without running anything in them. Exit code 1 for one that is not trusted.

    Example: marctl verify model_store/archives/mcqa-2.0.mar --keys keys
    """
    from marctl.build.reader import read_archive
    from marctl.signing.trust import Trust

    trust = Trust(keys)
    found = []
    for file in files:
        archive = read_archive(file)
        signer = trust.check(file, archive.statement)
        found.append({"archive": str(file), "model": archive.name, "version": archive.version, "signer": signer})
    result({"archives": found}, "\n".join(f"{f['archive']}: {f['model']} {f['version']}, {f['signer']}" for f in found))


@click.group(cls=Group)
def keys() -> None:
    """Key pairs for signing archives.

    Example: marctl keys new release
    """


@keys.command()
@json_option
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default=True,
    help="Where to write both files.",
)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that protects the private key.")
def new(name: str, folder: Path, passphrase: bool) -> None:
    """Make a key pair for signing.

    NAME.key signs and is kept secret, NAME.pub goes into the folder of trusted keys. The kind is Ed25519, and OpenSSL
    makes the same: openssl genpkey -algorithm ed25519 -out NAME.key; openssl pkey -in NAME.key -pubout.

    Example: marctl keys new release --passphrase
    """
    from marctl.core.names import NAME
    from marctl.signing.keys import key_id, new_pair, read_public

    if not NAME.fullmatch(name):
        raise click.UsageError(f"{name!r}: use letters, digits, '.', '_' and '-'")
    asked = click.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True) if passphrase else ""
    private, public = new_pair(folder, name, asked.encode() or None)
    content = {"private": str(private), "public": str(public), "key": key_id(read_public(public))}
    result(content, f"{private}: keep it secret\n{public}: key {content['key']}")
