"""The files for a browser, and who may see them; tests/live/test_page.py drives them in Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from marctl.core.errors import UserError
from marctl.gateway import web
from marctl.gateway.listeners import bootstrap
from marctl.gateway.settings import GatewaySettings, read_settings

URLS = dict.fromkeys(("inference", "management", "metrics"), "http://127.0.0.1:1")
OFF = GatewaySettings(page=False)


def test_the_page_is_one_file_that_fetches_nothing_from_elsewhere() -> None:
    text = web.files()["/"].path.read_text()
    assert (
        re.findall(
            r"(?:src|href)=\"(?!docs|openapi\.json|health|metrics|#|data:)[^\"]*\"|https?://|@import|url\(", text
        )
        == []
    )


def test_only_the_pages_own_script_and_style_may_run() -> None:
    policy = web.files()["/"].policy
    assert policy["default-src"] == "'none'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[name])
    text = web.files()["/"].path.read_text()
    assert re.findall(r"<[^>]+\s(?:on\w+|style)=", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text) == []


def test_another_page_may_put_none_of_them_in_a_frame() -> None:
    for file in web.files().values():
        assert file.policy["frame-ancestors"] == "'none'"
        assert file.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_shown_where_it_is_switched_off() -> None:
    assert (web.routes(OFF), web.clusters(OFF)) == ([], [])
    for settings, there in ((OFF, False), (GatewaySettings(), True)):
        resources = bootstrap(Path("/tmp"), 1, 2, URLS, settings)["static_resources"]
        named = {part["name"] for kind in ("listeners", "clusters") for part in resources[kind]}
        assert (web.WEB in named) == there


def test_without_the_wheel_of_swagger_ui_there_is_the_page_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "find_spec", lambda _: None)
    assert list(web.files()) == ["/"]


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/path", "null", "https://a b"])
def test_an_origin_is_a_scheme_and_a_host(tmp_path: Path, origin: str) -> None:
    (tmp_path / "gateway.yaml").write_text(f"allowed_origins: ['{origin}']\n")
    with pytest.raises(UserError, match=r"allowed_origins\[0\]"):
        read_settings(tmp_path / "gateway.yaml")
