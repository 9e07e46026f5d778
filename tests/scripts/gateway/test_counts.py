"""What is read from Envoy's figures; that Envoy counts so is proved in tests/live/test_gateway_counts.py."""

from __future__ import annotations

from marctl.gateway.counts import ATTEMPTS, read
from marctl.gateway.names import Role


def attempts(cold: str, code: int, number: int) -> str:
    labels = f'model="m",version="1",role="split",host="127.0.0.1:1",code="{code}",flags="-",cold="{cold}"'
    return f"{ATTEMPTS}{{{labels}}} {number}\n"


def test_a_version_that_was_still_being_loaded_has_not_failed() -> None:
    page = f"# TYPE {ATTEMPTS} counter\n" + attempts("-", 200, 7) + attempts("1", 503, 5) + attempts("-", 503, 2)
    found = read(page)["m", "1", Role.SPLIT]
    assert (found.total, found.failed) == (9, 2)
