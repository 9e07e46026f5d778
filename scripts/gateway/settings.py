"""What the gateway lets in: address, limits, keys, certificate. One YAML file, `marctl up --gateway-config FILE`."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from marctl.core.errors import UserError
from marctl.core.faults import listed, pointer

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

HEADER_VALUE = re.compile(r"[!-~]+")
ADDRESS = r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:]+\]):\d{1,5}$"
ORIGIN = r"^(\*|https?://[^/\s]+)$"
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class RateLimit(Struct, frozen=True, forbid_unknown_fields=True):
    """Per client: by API key's owner where keys are on, else by address."""

    requests_per_s: Positive
    burst: Positive | None = None
    """Requests at once; as many as `requests_per_s` if left out."""
    kilobytes_per_s: Positive | None = None
    """Of bodies, which is what a request costs, roughly; a client may send one largest body at once in any case."""


class Tls(Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files."""

    certificate: str
    key: str


class GatewaySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file; all of it may be left out."""

    address: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 opens the gateway to the network."""
    threads: Positive = 1
    upstreams: list[Annotated[str, Meta(pattern=ADDRESS)]] = []
    """Further TorchServe servers, IP:PORT, which serve the same versions; those with the fewest requests are asked."""
    body_bytes: Positive = 1 << 20
    """Larger requests get 413. TorchServe's own limit, max_request_size, must not be smaller."""
    request_timeout_s: Seconds = 15.0
    """For a request to arrive whole; its headers have a third of it."""
    idle_timeout_s: Seconds = 60.0
    """For a connection without a request; one that never sent a byte has a third of `request_timeout_s`."""
    connections: Positive = 4096
    memory_mb: Annotated[int, Meta(ge=128)] = 1024
    """Envoy's heap at most: near it, requests are refused, and those that hold most of it are ended."""
    probe_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """A port of its own for /healthz and /ready, which answers while the gateway is full; 0 for any free one."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """A port of its own for /metrics, which asks for no key: for a Prometheus on another machine. 0 for none."""
    requests_per_version: Positive = 2048
    """Under way at once, TorchServe's queue included; more get 503. It should be more than a recipe's `queue_size`:
    what TorchServe refuses falls back, what Envoy refuses does not."""
    batch: Annotated[str, Meta(pattern=ADDRESS)] | None = None
    """IP:PORT of a batch service; `marctl up --batch-config` starts one on this machine."""
    rate_limit: RateLimit | None = None
    api_keys: dict[str, str | list[str]] = {}
    """Client's name to its key, sent as `x-api-key`, or to several while one takes another's place; without any,
    everybody may ask."""
    tls: Tls | None = None
    page: bool = True
    """Whether browsers get the page to try the models, at `/`, and the API's reference, at `/docs`."""
    allowed_origins: list[Annotated[str, Meta(pattern=ORIGIN)]] = []
    """Web pages of these origins may call the gateway from a browser (CORS), as https://example.com; "*" for all."""

    @property
    def credentials(self) -> list[tuple[str, str]]:
        """Each key with its client's name."""
        several = ((client, [keys] if isinstance(keys, str) else keys) for client, keys in self.api_keys.items())
        return [(client, key) for client, keys in several for key in keys]


def read_settings(path: Path | None, upstreams: Sequence[str] = ()) -> GatewaySettings:
    """The file's settings, or the defaults without one, and further upstreams; raises UserError listing every fault."""
    content = read_file(path) if path else {}
    if upstreams and isinstance(content, dict):
        content = {**content, "upstreams": [*content.get("upstreams", []), *upstreams]}
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    errors = Draft202012Validator(msgspec.json.schema(GatewaySettings)).iter_errors(content)
    # Of a part that may be left out, the fault that matters is not that it was not left out.
    deepest = [best_match([error]) for error in errors]
    faults = [f"{pointer(error.absolute_path)}: {words_of(error)}" for error in deepest if error]
    settings = GatewaySettings() if faults else msgspec.convert(content, GatewaySettings)
    if settings.tls:
        files = {"certificate": settings.tls.certificate, "key": settings.tls.key}
        missing = [f"tls.{name}: no file {file}" for name, file in files.items() if not Path(file).is_file()]
        faults += missing or pair_faults(settings.tls)
    faults += key_faults(settings)
    if faults:
        raise UserError(listed(path or "the gateway", faults))
    return settings


def pair_faults(tls: Tls) -> list[str]:
    """Why the certificate and the private key cannot be used together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ssl.SSLError) as err:
        reason = getattr(err, "reason", None) or getattr(err, "strerror", None) or type(err).__name__
        return [f"tls: {tls.certificate} and {tls.key} are no certificate with its key: {reason}"]
    return []


def key_faults(settings: GatewaySettings) -> list[str]:
    """What is wrong with the API keys, without a word of them."""
    keys = [key for _, key in settings.credentials]
    faults = ["api_keys: two clients have the same key"] if len(set(keys)) < len(keys) else []
    unusable = {client for client, key in settings.credentials if not HEADER_VALUE.fullmatch(key)}
    unusable |= {client for client, given in settings.api_keys.items() if not given}
    return faults + [f"api_keys.{name}: expected visible ASCII characters, no spaces" for name in sorted(unusable)]


def words_of(error: ValidationError) -> str:
    """What is wrong. The library's own words quote the value, which may be a key."""
    if "api_keys" in error.absolute_path:
        return "expected a key as text (in quotes if it is a number), or a list of keys"
    return str(error.message)


def read_file(path: Path) -> Any:
    """Raises UserError, which quotes nothing of the file: it holds keys."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.MarkedYAMLError as err:
        line = f"line {err.problem_mark.line + 1}: " if err.problem_mark else ""
        raise UserError(f"{path}: cannot be read as YAML: {line}{err.problem}") from err
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UserError(f"{path}: cannot be read as YAML: {type(err).__name__}") from err
