"""Against the rules and examples of W3C Trace Context, level 1."""

from __future__ import annotations

import pytest

from marctl_handlers.core.trace import trace_id, traceparent

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_valid_header_is_kept() -> None:
    assert traceparent(GOOD) == GOOD
    assert trace_id(GOOD) == "0af7651916cd43dd8448eb211c80319c"


def test_of_a_later_version_the_known_parts_are_kept() -> None:
    assert traceparent("cc" + GOOD[2:] + "-what-the-future-holds") == "cc" + GOOD[2:]
    assert traceparent("cc" + GOOD[2:]) == "cc" + GOOD[2:]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        GOOD[:-1],
        GOOD + "-more",
        GOOD + "\n",
        "cc" + GOOD[2:] + ".more",
        GOOD.upper(),
        "ff" + GOOD[2:],
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        GOOD.replace("b7ad6b7169203331", "0" * 16),
        GOOD.replace("-", "_"),
        f"{GOOD},{GOOD}",
        "00-" + "\N{ARABIC-INDIC DIGIT ONE}" * 32 + GOOD[35:],
        "x" * 7000,
    ],
)
def test_a_malformed_one_is_ignored(header: str | None) -> None:
    assert traceparent(header) is None
    assert trace_id(header) is None
