"""Which shared worker a version belongs into, and how it is declared."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from marctl.build.reader import Archive, read_archive
from marctl.core.names import name_faults
from marctl.core.shared import is_shared
from marctl.stack.document import Document, Pool
from marctl.stack.plan import declare, declared, with_workers
from marctl.stack.shared import worker_of
from marctl.stack.versions import LoadFailed
from marctl_handlers.shared.settings import SharedSettings
from tests.tiny_archives import CONFIG, tiny_archive


def shared_archive(folder: Path, version: str = "1.0", code: str = "a", shared: bool = True) -> Archive:
    """A tiny archive that asks for a place in a shared worker."""
    path = tiny_archive(folder, "small", version)
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    if shared:
        content["model-config.yaml"] = f"{CONFIG}shared: true\n".encode()
    digest = hashlib.sha256(code.encode()).hexdigest()
    content["metadata.json"] = json.dumps({"files": {"marctl_handlers/entry.py": digest}}).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in content.items():
            new.writestr(name, data)
    return read_archive(path)


def test_versions_of_one_handler_code_are_in_one_worker_those_of_another_in_another(tmp_path: Path) -> None:
    one, same, other = (
        worker_of(shared_archive(tmp_path, version, code), Pool())
        for version, code in (("1.0", "a"), ("2.0", "a"), ("3.0", "b"))
    )
    assert one == same
    assert one.name != other.name


def test_other_settings_are_another_worker_but_not_another_number_of_processes(tmp_path: Path) -> None:
    archive = shared_archive(tmp_path)
    names = {worker_of(archive, pool).name for pool in (Pool(), Pool(workers=3), Pool(memory_mb=64))}
    assert len(names) == 2
    assert Pool().runs_like(Pool(workers=3))
    assert not Pool().runs_like(Pool(memory_mb=64))
    assert not Pool().runs_like(None)


def test_explanations_have_shared_workers_of_their_own(tmp_path: Path) -> None:
    archive = shared_archive(tmp_path)
    explains = worker_of(archive, Pool(), explain=True)
    assert explains.name != f"{worker_of(archive, Pool()).name}"
    assert explains.name.endswith("-explain")
    assert yaml.safe_load(explains.config)["shared"]["nice"] == 19


def test_no_model_can_be_called_like_a_shared_worker(tmp_path: Path) -> None:
    name = worker_of(shared_archive(tmp_path), Pool()).name
    assert is_shared(name)
    assert name_faults(name, "1.0")


@pytest.mark.parametrize("explain", [False, True])
def test_a_worker_understands_what_it_is_configured_with(tmp_path: Path, explain: bool) -> None:
    config = yaml.safe_load(worker_of(shared_archive(tmp_path), Pool(memory_mb=99), explain=explain).config)
    assert SharedSettings.load(config["shared"]).memory_mb == 99


def test_an_archive_that_was_not_built_here_cannot_be_in_one(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="workers: 1"):
        worker_of(read_archive(tiny_archive(tmp_path)), Pool())


def test_an_archive_is_declared_as_its_recipe_says_unless_a_number_is_given(tmp_path: Path) -> None:
    archive = shared_archive(tmp_path)
    assert declared(archive).shared
    assert declared(archive, 2).workers == 2
    document = declare(Document(), [archive.path], set(), lambda _: None)
    assert with_workers(document, 3) == document


@pytest.mark.parametrize("before", [True, False])
def test_a_recipe_that_changes_its_mind_is_followed(tmp_path: Path, before: bool) -> None:
    def version(shared: bool, **content: Any) -> Document:
        path = shared_archive(tmp_path, shared=shared, **content).path
        return declare(first, [path], set(), lambda _: None)

    first = Document()
    first = version(before)
    after = version(not before, code="b").find("small", "1.0")
    assert after is not None
    assert after.shared is not before
