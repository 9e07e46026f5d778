from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from marctl.build.reader import MANIFEST, read_archive
from marctl.core.errors import UserError
from tests.tiny_archives import tiny_archive

BOMB = "l0: &l0 [x]\n" + "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]\n" for i in range(9))


def archive(folder: Path, model: object = "mcqa", version: object = "1.0", **files: str) -> Path:
    """A small archive with other names, and further files in place of its own."""
    made = tiny_archive(folder)
    with zipfile.ZipFile(made) as file:
        content = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(content[MANIFEST])
    manifest["model"] |= {"modelName": model, "modelVersion": version}
    named = {
        name.replace("__", "-").replace("_yaml", ".yaml").replace("_json", ".json"): text
        for name, text in files.items()
    }
    with zipfile.ZipFile(made, "w") as file:
        for name, text in {**content, MANIFEST: json.dumps(manifest), **named}.items():
            file.writestr(name, text)
    return made


def test_what_an_archive_says_of_itself(tmp_path: Path) -> None:
    read = read_archive(archive(tmp_path, model__config_yaml="minWorkers: 3\nmaxWorkers: 3\n"))
    assert (read.name, read.version, read.workers, read.explainers) == ("mcqa", "1.0", 3, None)
    assert read_archive(archive(tmp_path, explain__config_yaml="minWorkers: 0\n")).explainers == 0


@pytest.mark.parametrize("name", ["a\nb", "../evil", "", "a b", "a/b", "mcqa-explain", "ä", "x" * 101])
def test_a_name_that_could_mean_something_else_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="model name"):
        read_archive(archive(tmp_path, model=name))


@pytest.mark.parametrize("version", ["../1", "1\n", "1/2", "", " 1"])
def test_so_is_a_version(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match="version name"):
        read_archive(archive(tmp_path, version=version))


@pytest.mark.parametrize("name", [7, None, ["x"]])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(UserError, match="must be text"):
        read_archive(archive(tmp_path, model=name))


def test_a_yaml_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model-config\.yaml: more than 50 aliases"):
        read_archive(archive(tmp_path, model__config_yaml=BOMB))


@pytest.mark.parametrize("config", ["[1]", "minWorkers: many", "minWorkers: -1", "minWorkers: true", "{", "\x00"])
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path, config: str) -> None:
    with pytest.raises(UserError, match=r"model-config\.yaml"):
        read_archive(archive(tmp_path, model__config_yaml=config))


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    made = tiny_archive(tmp_path)
    with (
        zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as file,
        file.open("zeros", "w", force_zip64=True) as zeros,
    ):
        for _ in range(300):
            zeros.write(bytes(1 << 20))
    with pytest.raises(UserError, match=r"0 MiB that unpack to 300 MiB; at most 100 times"):
        read_archive(made)


def test_a_nested_manifest_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "x.mar"
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(MANIFEST, "[" * 200_000)
    with pytest.raises(UserError, match="not a whole model archive"):
        read_archive(made)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip at all"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    made = tmp_path / "x.mar"
    made.write_bytes(content)
    with pytest.raises(UserError, match="not a whole model archive"):
        read_archive(made)
