from __future__ import annotations

from pathlib import Path

import pytest

from marctl.core.errors import UserError
from marctl.gateway.settings import GatewaySettings, RateLimit, read_settings


def written(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return path


def test_without_a_file_the_gateway_is_on_loopback_and_asks_for_no_key() -> None:
    settings = read_settings(None)
    assert (settings.address, settings.api_keys, settings.rate_limit, settings.tls) == ("127.0.0.1", {}, None, None)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, "")) == GatewaySettings()


def test_a_file_is_read(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, "rate_limit: {requests_per_s: 5}\napi_keys: {ann: secret-1}\n"))
    assert (settings.rate_limit, settings.api_keys) == (RateLimit(5), {"ann": "secret-1"})


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = "threads: 0\nbody: 7\ntls: {certificate: a.pem}\nrate_limit: {requests_per_s: many}\n"
    with pytest.raises(UserError, match="4 faults") as caught:
        read_settings(written(tmp_path, text))
    for place in ("threads", "'body'", "tls", "rate_limit.requests_per_s"):
        assert place in str(caught.value)


def test_certificates_must_be_there_and_keys_differ(tmp_path: Path) -> None:
    text = "tls: {certificate: /no/cert.pem, key: /no/key.pem}\napi_keys: {ann: same, bob: same}\n"
    with pytest.raises(UserError, match="3 faults") as caught:
        read_settings(written(tmp_path, text))
    assert "tls.key: no file /no/key.pem" in str(caught.value)
    assert "same" not in str(caught.value).replace("the same key", "")


def test_what_is_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gateway\.yaml: cannot be read as YAML"):
        read_settings(written(tmp_path, "a: {"))


def test_further_servers_are_added_to_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, 'upstreams: ["10.0.0.2:8080"]\n')
    assert read_settings(path, ["10.0.0.3:8080"]).upstreams == ["10.0.0.2:8080", "10.0.0.3:8080"]
    with pytest.raises(UserError, match=r"upstreams\[0\]: 'host:80' does not match"):
        read_settings(None, ["host:80"])
