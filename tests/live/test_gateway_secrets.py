"""API keys and the certificate change under load: whoever has a valid key is answered all the while."""

from __future__ import annotations

import re
import shutil
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import yaml

from marctl.core.http import local_session
from marctl.stack.state import State
from tests.live.conftest import Site
from tests.live.envoys import self_signed, until
from tests.tiny_archives import REQUEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore:Unverified HTTPS request"),
]
OLD, NEW, BOB = "old-secret-of-alice", "new-secret-of-alice", "secret-of-bob"
CLIENTS = 4


@dataclass
class Guarded:
    """A stack that asks for keys, and its configuration, which the test edits as an operator would."""

    site: Site
    gateway: str = ""
    clients: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.site.folder / "gateway.yaml"

    @property
    def pair(self) -> tuple[Path, Path]:
        return self.site.folder / "cert.pem", self.site.folder / "key.pem"

    def write(self, **keys: str | list[str]) -> None:
        certificate, key = map(str, self.pair)
        self.config.write_text(yaml.safe_dump({"api_keys": keys, "tls": {"certificate": certificate, "key": key}}))

    def code(self, key: str) -> int:
        headers = {"x-api-key": key}
        return requests.post(
            f"{self.gateway}/predict", json=REQUEST, headers=headers, timeout=30, verify=False
        ).status_code

    def serial(self) -> bytes:
        """The certificate that a client sees."""
        address = self.gateway.removeprefix("https://").split(":")
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((address[0], int(address[1]))))

    @contextmanager
    def under_load(self) -> Iterator[Counter[int]]:
        """Clients ask with alice's key of the moment, on connections of every age."""
        codes: Counter[int] = Counter()
        ending = threading.Event()

        def ask() -> None:
            with local_session() as session:
                session.verify = False
                for number in iter(int, 1):
                    if ending.is_set():
                        return
                    headers = {"x-api-key": self.clients["alice"]} | (
                        {"connection": "close"} if number % 9 == 0 else {}
                    )
                    codes[
                        session.post(f"{self.gateway}/predict", json=REQUEST, headers=headers, timeout=30).status_code
                    ] += 1

        threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield codes
        finally:
            ending.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def guarded(make_site: Callable[..., Site]) -> Iterator[Guarded]:
    made = Guarded(make_site("1.0"), clients={"alice": OLD})
    self_signed(made.site.folder)
    made.write(alice=OLD, bob=BOB)
    made.gateway = made.site.call(*made.site.up_arguments, "--gateway-config", str(made.config), "--detach")["gateway"]
    yield made
    made.site.run("down")


def test_a_key_rotates_and_no_request_with_a_valid_one_is_refused(guarded: Guarded) -> None:
    with guarded.under_load() as codes:
        assert guarded.code(NEW) == 401
        guarded.write(alice=[OLD, NEW], bob=BOB)
        until(lambda: guarded.code(NEW) == 200)
        guarded.clients["alice"] = NEW
        # Requests under way still have the former one: each client is to have one answered that began later.
        answered = codes.copy().total()
        until(lambda: codes.copy().total() > answered + 10 * CLIENTS)
        time.sleep(0.5)
        guarded.write(alice=NEW, bob=BOB)
        until(lambda: guarded.code(OLD) == 401)
        assert guarded.code(BOB) == 200
    assert set(codes) == {200}
    assert codes[200] >= 10


def test_a_file_that_is_half_written_or_wrong_takes_nobodys_key_away(guarded: Guarded) -> None:
    whole = guarded.config.read_text()
    with guarded.under_load() as codes:
        for wrong in ("api_keys: {alice: ", "api_keys: {alice: 12345678}\ntls: {certificate: a}", "{}"):
            guarded.config.write_text(wrong)
            until(lambda: bool(State(guarded.site.state).status().conditions))
            [condition] = State(guarded.site.state).status().conditions
            assert condition.what == "the gateway's keys and certificate"
            assert "12345678" not in condition.reason
            guarded.config.write_text(whole)
            until(lambda: not State(guarded.site.state).status().conditions)
    assert set(codes) == {200}


def test_a_renewed_certificate_is_shown_to_new_connections_at_once(guarded: Guarded) -> None:
    before = guarded.serial()
    other = guarded.site.folder / "other"
    other.mkdir()
    self_signed(other)
    with guarded.under_load() as codes:
        shutil.copy(other / "cert.pem", guarded.pair[0])
        time.sleep(1.5)  # the key is still the former one, which does not go with it
        assert guarded.serial() == before
        shutil.copy(other / "key.pem", guarded.pair[1])
        until(lambda: guarded.serial() == ssl.PEM_cert_to_DER_cert((other / "cert.pem").read_text()))
    assert set(codes) == {200}
    figures = requests.get(guarded.site.call("status")["metrics"] + "/metrics", timeout=30).text
    assert re.search(r"^gateway_certificate_expiry_timestamp_seconds \d", figures, re.MULTILINE)
