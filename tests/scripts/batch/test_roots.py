"""Paths that a client names stay below the configured folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from marctl.batch.places import find_files
from marctl.batch.roots import OutsideRoots, refuse_files_outside, refuse_outside


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    """A folder with a file and links that lead out of it; and a bucket."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data-other").mkdir()
    (tmp_path / "data-other" / "secret.csv").write_text("x\n1\n")
    (tmp_path / "data" / "rows.csv").write_text("x\n1\n")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data-other")
    (tmp_path / "data" / "linked.csv").symlink_to(tmp_path / "data-other" / "secret.csv")
    return [str(tmp_path / "data"), "s3://bucket/shared"]


@pytest.mark.parametrize("text", ["{}", "{}/rows.csv", "{}/*.csv", "{}/deep/out", "s3://bucket/shared/a/*.csv"])
def test_what_is_below_a_folder_may_be_used(roots: list[str], text: str) -> None:
    refuse_outside(text.format(roots[0]), roots)


@pytest.mark.parametrize(
    "text",
    [
        "{}/../data-other/secret.csv",
        "{}-other/secret.csv",
        "{}/link/secret.csv",
        "{}/link/*.csv",
        "{}/linked.csv",
        "{}/deep/../../data-other",
        "/etc/passwd",
        "etc/passwd",
        "rows.csv",
        "file://{}/rows.csv",
        "file:///etc/passwd",
        "local://{}/rows.csv",
        "{}/rows.csv\0.parquet",
        "{}/rows.csv\n",
        "",
        "~/rows.csv",
        "s3://bucket/other/rows.csv",
        "s3://bucket/shared",
        "s3://bucket/shared-not/rows.csv",
        "s3://bucket/shared/../other/rows.csv",
        "s3://bucket/shared/./../other/rows.csv",
        "s3://bucket/shared/%2e%2e/other/rows.csv",
        "s3://other/shared/rows.csv",
        "s3://bucket/shared/rows.csv?endpoint_override=http://169.254.169.254",
        "s3://bucket/shared/rows.csv#x",
        "s3://key:secret@bucket/shared/rows.csv",
        "s3a://bucket/shared/rows.csv",
        "http://127.0.0.1:8081/models",
        "http://bucket/shared/rows.csv",
        "gs://bucket/shared/rows.csv",
        "simplecache::s3://bucket/shared/rows.csv",
        "zip://x.csv::file:///etc/passwd",
        "reference://bucket/shared",
        "memory://bucket/shared/rows.csv",
    ],
)
def test_what_leads_out_of_it_may_not(roots: list[str], text: str) -> None:
    with pytest.raises(OutsideRoots, match="is not below a folder that may be used"):
        refuse_outside(text.format(roots[0]), roots)


def test_a_link_among_the_files_of_a_folder_is_found(roots: list[str]) -> None:
    refuse_outside(roots[0], roots)
    with pytest.raises(OutsideRoots, match=r"linked\.csv"):
        refuse_files_outside(find_files([f"{roots[0]}/*.csv"]), roots)
    with pytest.raises(OutsideRoots):
        refuse_files_outside(find_files([roots[0]]), roots)
