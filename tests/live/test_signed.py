"""A stack that loads only what trusted keys have signed: whoever asks for another archive, no line of it runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from marctl.build.reader import read_archive
from marctl.signing.envelope import sign, signature_file
from marctl.signing.keys import key_id, new_pair, read_private, read_public
from marctl.stack.document import Version
from marctl.stack.management import Management
from marctl.stack.plan import TAKE_BACK
from marctl.stack.state import State
from marctl.stack.store import digest_of
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.tiny_archives import CONSTANT, tiny_archive

pytestmark = pytest.mark.live


@dataclass
class Signed:
    """A site, its signers, the folder of those that are trusted, and a mark that an evil archive's code would leave."""

    site: Site
    gateway: str = ""
    management: str = ""

    @property
    def keys(self) -> Path:
        return self.site.folder / "keys"

    @property
    def mark(self) -> Path:
        return self.site.folder / "evil-was-here"

    def trust(self, name: str) -> None:
        new_pair(self.site.folder / "signers", name)
        self.keys.mkdir(exist_ok=True)
        shutil.copy(self.site.folder / "signers" / f"{name}.pub", self.keys)

    def archive(self, folder: str, version: str, *signers: str, evil: bool = False) -> Path:
        handler = f"open({str(self.mark)!r}, 'a').close()\n{CONSTANT}" if evil else CONSTANT
        path = tiny_archive(self.site.folder / folder, version=version, handler=handler)
        for name in signers:
            key = read_private(self.site.folder / "signers" / f"{name}.key")
            sign(path, read_archive(path).statement, key)
        return path

    def served(self) -> list[str]:
        return sorted(f"mcqa {each.version}" for each in Management(self.management).versions("mcqa"))

    def conditions(self) -> dict[str, str]:
        return {each.what: each.reason for each in State(self.site.state).status().conditions}

    def answers(self) -> str:
        """The version that answers a client."""
        answer = self.site.client(self.gateway)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-model-version"]

    def declare_past_the_commands(self, path: Path, **content: Any) -> int:
        """A revision that nobody checked before the reconciler; returns its number."""
        history, archive = State(self.site.state).history, read_archive(path)
        now = history.current()
        version = Version(archive=digest_of(archive), file=path.name, **content)
        document = now.document.with_version(archive.name, archive.version, version)
        return history.commit(document, expected=now.revision, actor="eve", command="sneak").revision


@pytest.fixture(scope="module")
def signed(make_site: Callable[..., Site]) -> Iterator[Signed]:
    """mcqa 1.0 and 2.0 are signed by `old` and served; 9.0 in the same store is not signed."""
    made = Signed(make_site())
    made.trust("old")
    for version in ("1.0", "2.0"):
        made.archive("store", version, "old")
    made.archive("store", "9.0", evil=True)
    up = made.site.run(*made.site.up_arguments, "--require-signed", str(made.keys), "--detach")
    assert up.returncode == 0, up.stderr
    assert "left out" in up.stderr
    assert "mcqa 9.0 is not loaded: it is not signed" in up.stderr
    status = made.site.call("status")
    made.gateway, made.management = status["gateway"], status["management"]
    yield made
    assert not made.mark.exists()
    made.site.run("down")


def test_only_what_is_signed_in_the_store_is_served(signed: Signed) -> None:
    assert signed.served() == ["mcqa 1.0", "mcqa 2.0"]
    assert signed.answers() == "2.0"
    assert f"archives must be signed by a key in {signed.keys}" in signed.site.run("status").stdout


@pytest.mark.parametrize("kind", ["unsigned", "stranger", "altered", "other version's signature"])
def test_register_refuses_it_before_it_is_even_copied(signed: Signed, kind: str) -> None:
    if not (signed.site.folder / "signers" / "stranger.key").exists():
        new_pair(signed.site.folder / "signers", "stranger")
    words = {
        "unsigned": "it is not signed",
        "stranger": "which is no key in",
        "altered": "old signed mcqa 3.0",
        "other version's signature": "old signed mcqa 1.0",
    }[kind]
    if kind == "altered":
        signed.archive("given", "3.0", "old")
    path = signed.archive("given", "3.0", *(["stranger"] if kind == "stranger" else []), evil=True)
    if kind.startswith("other"):
        shutil.copy(signature_file(signed.site.store / "mcqa-1.0.mar"), signature_file(path))
    done = signed.site.run("register", str(path))
    assert done.returncode == 1
    assert words in done.stderr
    assert not (signed.site.store / path.name).exists()
    assert signed.served() == ["mcqa 1.0", "mcqa 2.0"]
    signature_file(path).unlink(missing_ok=True)


def test_state_apply_refuses_it(signed: Signed) -> None:
    document = signed.site.call("state", "show")
    digest = digest_of(read_archive(signed.site.store / "mcqa-9.0.mar"))
    document["models"]["mcqa"]["versions"]["9.0"] = {"archive": digest, "file": "mcqa-9.0.mar", "workers": 1}
    path = signed.site.folder / "wanted.yaml"
    path.write_text(yaml.safe_dump(document))
    done = signed.site.run("state", "apply", str(path))
    assert done.returncode == 1
    assert "mcqa 9.0 is not loaded: it is not signed" in done.stderr


@pytest.mark.parametrize("content", [{"workers": 1}, {"workers": "shared"}, {"workers": 0, "explainers": 1}])
def test_a_revision_that_went_past_the_commands_is_taken_back(signed: Signed, content: dict[str, Any]) -> None:
    revision = signed.declare_past_the_commands(signed.site.store / "mcqa-9.0.mar", **content)
    history = State(signed.site.state).history
    until(lambda: history.current().revision > revision)
    taken = history.current()
    assert taken.command == TAKE_BACK
    assert "mcqa 9.0 is not loaded: it is not signed" in taken.reason
    until(lambda: State(signed.site.state).status().observed == taken.revision)
    assert signed.served() == ["mcqa 1.0", "mcqa 2.0"]


def test_batch_predicts_with_nothing_else_either(signed: Signed) -> None:
    out = str(signed.site.folder / "out")
    done = signed.site.run("batch", str(signed.site.store / "mcqa-9.0.mar"), str(signed.site.folder / "rows.csv"), out)
    assert done.returncode == 1
    assert "mcqa 9.0 is not loaded: it is not signed" in done.stderr


def test_a_key_rotates_without_a_restart_and_what_runs_goes_on(signed: Signed) -> None:
    signed.trust("new")
    done = signed.site.run("register", str(signed.archive("given", "3.0", "new")))
    assert done.returncode == 0, done.stderr
    (signed.keys / "old.pub").unlink()
    until(lambda: set(signed.conditions()) == {"mcqa 1.0", "mcqa 2.0"})
    assert "which is no key in" in signed.conditions()["mcqa 1.0"]
    assert signed.served() == ["mcqa 1.0", "mcqa 2.0", "mcqa 3.0"]
    assert signed.answers() == "2.0"
    shutil.copy(signed.site.folder / "signers" / "old.pub", signed.keys)
    until(lambda: not signed.conditions())


def test_a_revoked_key_takes_what_it_signed_out_of_service_at_once(signed: Signed) -> None:
    revoked = signed.keys / "revoked.txt"
    revoked.write_text(f"{key_id(read_public(signed.keys / 'old.pub'))}  # stolen\n")
    began = time.monotonic()
    until(lambda: signed.served() == ["mcqa 3.0"])
    assert time.monotonic() - began < 15
    assert signed.answers() == "3.0"
    assert "the key old, which signed it, is revoked" in signed.conditions()["mcqa 1.0"]
    revoked.unlink()
    until(lambda: signed.served() == ["mcqa 1.0", "mcqa 2.0", "mcqa 3.0"], timeout_s=30)
    until(lambda: not signed.conditions() and signed.answers() == "2.0", timeout_s=30)
