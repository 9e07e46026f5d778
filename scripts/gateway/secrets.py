"""What clients and the gateway prove themselves with: API keys and the certificate, in files that Envoy watches.

So both change while requests are under way, and neither stands in the start configuration. The files are readable by
their owner alone; Envoy shows neither keys on its admin page.

Envoy finds an API key in a hash table (api_key_auth.h), whose hash is seeded anew by each process: how long a wrong key
takes tells nothing of how much of it was right. loadtest/gateway/key_timing.py measures it.
"""

from __future__ import annotations

from pathlib import Path

from marctl.core.errors import UserError
from marctl.gateway.discovery import Discovery
from marctl.gateway.names import API_KEYS, Json, extension, typed, watched
from marctl.gateway.settings import GatewaySettings, Tls, pair_faults

CERTIFICATE = "certificate"
API_KEYS_FILE, CERTIFICATE_FILE = "api-keys.json", "certificate.json"
API_KEY_AUTH = "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth"
CLIENT_HEADER = "x-client"
"""Who asks, by name: written over by api_key_auth."""
VERSION_TEXTS = {
    API_KEYS_FILE: f"extension_config_discovery.http_filter.{API_KEYS}.version_text",
    CERTIFICATE_FILE: f"sds.{CERTIFICATE}.version_text",
}
"""Where Envoy tells which version of these files is in force."""


def contents(settings: GatewaySettings, folder: Path) -> dict[str, Discovery]:
    """The files in `folder` that these settings need.

    A certificate that cannot be used, as while it is replaced, leaves the one that was there before. Raises UserError
    if there was none.
    """
    found: dict[str, Discovery] = {}
    if settings.api_keys:
        found[API_KEYS_FILE] = Discovery.of([typed("envoy.config.core.v3.TypedExtensionConfig", **api_keys(settings))])
    if settings.tls:
        try:
            found[CERTIFICATE_FILE] = Discovery.of([certificate(settings.tls)])
        except UserError:
            former = Discovery.read(folder / CERTIFICATE_FILE)
            if former is None:
                raise
            found[CERTIFICATE_FILE] = former
    return found


def api_keys(settings: GatewaySettings) -> Json:
    credentials = [{"client": client, "key": key} for client, key in settings.credentials]
    return extension(
        API_KEYS,
        API_KEY_AUTH,
        credentials=credentials,
        key_sources=[{"header": "x-api-key"}],
        forwarding={"header": CLIENT_HEADER, "hide_credentials": True},
    )


def certificate(tls: Tls) -> Json:
    """Both files' content: Envoy would read them one after the other, perhaps while somebody replaces them."""
    chain, key = read_pair(tls)
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        name=CERTIFICATE,
        tls_certificate={"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}},
    )


def read_pair(tls: Tls) -> tuple[str, str]:
    """Certificate and private key, which belong together. Raises UserError."""
    try:
        pair = Path(tls.certificate).read_text(), Path(tls.key).read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"tls: a file cannot be read: {err}") from err
    if faults := pair_faults(tls):
        raise UserError(*faults)
    return pair


def api_key_filter(files: Path) -> Json:
    """The filter in the listener, whose keys come from their file."""
    types = [f"type.googleapis.com/{API_KEY_AUTH}"]
    return {
        "name": API_KEYS,
        "config_discovery": {"config_source": watched(files, API_KEYS_FILE), "type_urls": types},
    }


def tls_socket(files: Path) -> Json:
    secret = {"name": CERTIFICATE, "sds_config": watched(files, CERTIFICATE_FILE)}
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={"tls_certificate_sds_secret_configs": [secret], "alpn_protocols": ["h2", "http/1.1"]},
    )
