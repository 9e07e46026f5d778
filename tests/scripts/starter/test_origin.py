"""The records are those that pip writes (PEP 610)."""

from __future__ import annotations

import json
from pathlib import Path

from marctl.starter.origin import Origin, origin_of

PINNED = "torchserve-marctl==1.2"


def record(url: str, **more: object) -> str:
    return json.dumps({"url": url, **more})


def test_from_an_index_the_version_is_enough() -> None:
    assert origin_of("1.2", None) == Origin(PINNED)


def test_from_git_the_commit_is_named() -> None:
    told = record(
        "https://example.org/marctl.git", vcs_info={"vcs": "git", "commit_id": "abc", "requested_revision": "main"}
    )
    assert origin_of("1.2", told).requirement == "torchserve-marctl @ git+https://example.org/marctl.git@abc"


def test_from_an_address_the_address_is_named() -> None:
    told = record("https://example.org/m-1.2-py3-none-any.whl", archive_info={})
    assert origin_of("1.2", told).requirement == "torchserve-marctl @ https://example.org/m-1.2-py3-none-any.whl"


def test_from_a_file_the_file_is_needed_and_found_whatever_its_name(tmp_path: Path) -> None:
    wheel = tmp_path / "a folder" / "m-1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    assert origin_of("1.2", record(wheel.as_uri())) == Origin(PINNED, wheel=wheel, needs_wheel=True)
    wheel.unlink()
    assert origin_of("1.2", record(wheel.as_uri())) == Origin(PINNED, needs_wheel=True)


def test_from_a_clone_a_wheel_must_be_built_of_it(tmp_path: Path) -> None:
    found = origin_of("1.2", record(tmp_path.as_uri(), dir_info={"editable": True}))
    assert found.needs_wheel
    assert str(tmp_path) in found.how_to_wheel
