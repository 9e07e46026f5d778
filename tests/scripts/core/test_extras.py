"""The cure for a missing extra is a command that any installation can run."""

from __future__ import annotations

import shlex
from importlib import metadata

import pytest

from marctl.core import extras


def test_the_command_installs_what_the_extra_has_beyond_the_package() -> None:
    words = shlex.split(extras.install("batch"))
    assert words[:2] == ["pip", "install"]
    assert any(word.startswith("ray==") for word in words)
    assert not any(word.startswith(("torch", "marctl", "pytest")) for word in words)


def test_without_the_package_s_own_record_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(extras, "requires", gone)
    assert extras.install("batch") == "install this project's extra batch"
