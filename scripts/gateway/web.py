"""What a browser gets: the page at `/`, where each model can be tried, and the API's reference at `/docs`.

Both are files that Envoy sends as they are, without a key: they hold nothing of this server. Their scripts ask
`/openapi.json`, `/health` and the models like any other client, with the key that the user types.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from marctl.gateway.clusters import plain_cluster
from marctl.gateway.names import WEB, Json
from marctl.gateway.routes import label, no_such, other_methods, switched
from marctl.gateway.settings import GatewaySettings

HTML = Path(__file__).parent / "html"
LONGEST_FILE_BYTES = 4 << 20
REQUESTS = 64
"""Under way at once; more get 503."""
SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")
"""Of the wheel swagger-ui-py."""
PAGE_POLICY = {
    "default-src": "'none'",
    "connect-src": "'self'",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
STRICT = {"require-trusted-types-for": "'script'", "trusted-types": "'none'"}
"""No text can become HTML, not even by a mistake in the page's script."""
DOCS_POLICY = PAGE_POLICY | {"script-src": "'self'", "style-src": "'self' 'unsafe-inline'", "img-src": "'self' data:"}
"""Swagger UI sets styles on its elements."""
GUARDS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class File:
    """A file that is sent as it is."""

    path: Path
    media: str
    policy: Mapping[str, str] = field(default_factory=lambda: PAGE_POLICY)

    @property
    def headers(self) -> dict[str, str]:
        policy = "; ".join(f"{name} {value}" for name, value in self.policy.items())
        return GUARDS | {"content-type": self.media, "content-security-policy": policy, "cache-control": "no-cache"}


def files() -> dict[str, File]:
    """By the path that it is sent for. Without the wheel of Swagger UI there is no `/docs`."""
    page = HTML / "page.html"
    script, html = "text/javascript; charset=utf-8", "text/html; charset=utf-8"
    found = {"/": File(page, html, PAGE_POLICY | STRICT | hashes(page.read_text(encoding="utf-8")))}
    if spec := find_spec("swagger_ui"):
        static = Path(str(spec.origin)).parent / "static"
        found |= {"/docs": File(HTML / "docs.html", html, DOCS_POLICY), "/docs/docs.js": File(HTML / "docs.js", script)}
        found["/docs/docs.css"] = File(HTML / "docs.css", "text/css; charset=utf-8")
        for name in SWAGGER:
            found[f"/docs/{name}"] = File(static / name, script if name.endswith(".js") else "text/css")
    return found


def hashes(html: str) -> dict[str, str]:
    """The policy that lets a page's own scripts and styles run, and no others (Content Security Policy Level 3)."""
    found = {}
    for element in ("script", "style"):
        parts = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        sums = (b64encode(sha256(part.encode()).digest()).decode() for part in parts)
        found[f"{element}-src"] = " ".join(f"'sha256-{value}'" for value in sums)
    return found


def routes(settings: GatewaySettings) -> list[Json]:
    """The open listener's: to the one that has the files."""
    if not settings.page:
        return []
    paths = "|".join(map(re.escape, files()))
    # Whoever has no key yet must see where to type it. Rates are limited as everywhere.
    keyless = {"envoy.filters.http.api_key_auth": switched(on=False)}
    sent = {"match": {"safe_regex": {"regex": paths}}, "route": {"cluster": WEB}, "typed_per_filter_config": keyless}
    return [other_methods(paths, ["GET", "HEAD"]), sent]


def clusters(settings: GatewaySettings) -> list[Json]:
    if not settings.page:
        return []
    return [plain_cluster(WEB, {"envoy_internal_address": {"server_listener_name": WEB}}, REQUESTS)]


def file_routes() -> Json:
    """Of the listener inside Envoy that has the files. They never change while it runs."""
    nothing = {"match": {"prefix": "/"}, **no_such("path", "there is no such file")}
    return {
        "name": WEB,
        "max_direct_response_body_size_bytes": LONGEST_FILE_BYTES,
        "virtual_hosts": [{"name": WEB, "domains": ["*"], "routes": [*sending(), nothing]}],
    }


def sending() -> Iterator[Json]:
    for path, file in files().items():
        yield {
            "match": {"path": path},
            "direct_response": {"status": 200, "body": {"filename": str(file.path)}},
            "response_headers_to_add": [label(*header, overwrite=True) for header in file.headers.items()],
        }
