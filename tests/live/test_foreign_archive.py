"""An archive that somebody else made, with torch-model-archiver and a plain BaseHandler, is served unchanged."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import torch

from marctl.build.reader import read_archive
from tests.live.conftest import Site
from tests.live.envoys import until

pytestmark = [
    pytest.mark.live,
    # TorchScript is what such archives hold.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

HANDLER = '''\
import json

import torch
from ts.torch_handler.base_handler import BaseHandler


class Doubler(BaseHandler):
    """As in TorchServe's own examples: a TorchScript model, a body of numbers, a list of answers."""

    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        rows = [json.loads(bytes(row)) if isinstance(row, (bytes, bytearray)) else row for row in rows]
        return torch.tensor(rows, dtype=torch.float32)

    def postprocess(self, outputs):
        return [{"doubled": row.tolist()} for row in outputs]
'''


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def foreign(folder: Path, version: str) -> Path:
    """`theirs-VERSION.mar`, made by torch-model-archiver alone."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(Double()).save(str(folder / "model.pt"))
    (folder / "doubler.py").write_text(HANDLER)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "theirs", "--version", version]
    command += ["--serialized-file", str(folder / "model.pt"), "--handler", str(folder / "doubler.py")]
    subprocess.run([*command, "--export-path", str(folder)], check=True, capture_output=True)
    path = folder / f"theirs-{version}.mar"
    (folder / "theirs.mar").rename(path)
    return path


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack that serves another model."""
    made = make_site("1.0")
    made.up()
    yield made
    made.run("down")


def ask(site: Site, path: str = "theirs", **headers: str) -> requests.Response:
    url = f"{site.call('status')['gateway']}/predictions/{path}"
    return requests.post(url, json=[1.0, 2.5], headers=headers, timeout=30)


def workers(site: Site, version: str) -> list[int]:
    row: dict[str, Any] = site.versions()[f"theirs {version}"]
    pids: list[int] = row["pids"]
    return pids


def test_their_archive_goes_through_register_split_kill_and_unregister(site: Site, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        done = site.run("register", str(foreign(tmp_path, version)))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("no samples to ask") == 1
        assert "neither cached nor logged" in done.stderr
        assert ask(site, f"theirs/{version}").json() == {"doubled": [2.0, 5.0]}
    site.call("route", "split", "theirs", "1.0=100")
    site.call("route", "fallback", "theirs", "2.0")
    reply = ask(site)
    assert (reply.json(), reply.headers["x-model-version"]) == ({"doubled": [2.0, 5.0]}, "1.0")
    [pid] = workers(site, "1.0")
    psutil.Process(pid).kill()
    started = time.monotonic()
    answered = ask(site)
    assert (answered.status_code, answered.json()) == (200, {"doubled": [2.0, 5.0]})
    assert time.monotonic() - started < 30
    until(lambda: workers(site, "1.0") not in ([], [pid]), 60)
    site.call("route", "split", "theirs", "2.0=100")
    site.call("route", "fallback", "theirs", "--off")
    site.call("default", "theirs", "2.0")
    site.call("unregister", "theirs", "1.0")
    assert ask(site, "theirs/1.0").status_code == 404
    assert ask(site).json() == {"doubled": [2.0, 5.0]}


def test_what_it_lacks_is_told_by_inspect(tmp_path: Path) -> None:
    archive = read_archive(foreign(tmp_path, "3.0"))
    assert (archive.samples, archive.metadata) == ([], {})
