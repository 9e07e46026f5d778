"""What TorchServe starts as a worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from marctl.stack import worker
from marctl.stack.torchserve import WORKER_FILE, make_home, server_home

PROGRAM = """
import os, sys
sys.path[:0] = [{home!r} + "/ts", {home!r}]
os.environ["PYTHONPATH"] = "/model" + os.pathsep + {home!r}
import runpy
worker = runpy.run_path({home!r} + "/ts/model_service_worker.py", run_name="worker")
from pathlib import Path
worker["look_in"]({packages!r}, Path({home!r}))
worker["import_protocol"]()
from ts.protocol.otf_message_handler import create_predict_response
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_home(tmp_path / "home")
    return tmp_path / "home"


def output(home: Path, program: str) -> str:
    begin = PROGRAM.format(home=str(home), packages=str(server_home()))
    done = subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_answers_that_are_no_tensors_are_encoded_without_pytorch(home: Path) -> None:
    program = """
for answer in (b"bytes", "text", {"prediction": 1}, [1, 2], 0.5, None):
    assert create_predict_response([answer], {0: "id"}, "Prediction success", 200)
print("torch" in sys.modules)
"""
    assert output(home, program) == "False\n"


def test_a_tensor_is_encoded_as_by_torchserve_alone(home: Path) -> None:
    """Whenever the version's own code imports torch."""
    program = """
import io, torch
found = create_predict_response([torch.arange(3)], {0: "id"}, "Prediction success", 200)
import ts.protocol.otf_message_handler as protocol
protocol.torch = torch
print(found == create_predict_response([torch.arange(3)], {0: "id"}, "Prediction success", 200))
"""
    assert output(home, program) == "True\n"


def test_modules_come_from_where_torchserve_takes_them(home: Path) -> None:
    program = """
import ts.service
print(ts.service.__file__)
print(os.environ["PYTHONPATH"])
print([path for path in sys.path if "home" in path])
"""
    service, path, left = output(home, program).splitlines()
    assert Path(service) == server_home() / "ts" / "service.py"
    assert path == f"/model:{server_home()}"
    assert left == "[]"


def test_every_other_file_of_torchserve_is_where_java_looks_for_it(home: Path) -> None:
    """Its version, and its script for environments of single models."""
    names = {path.name for path in (server_home() / "ts").iterdir()}
    assert {path.name for path in (home / "ts").iterdir()} == names
    assert (home / "ts" / "version.txt").read_text() == (server_home() / "ts" / "version.txt").read_text()
    assert (home / "ts" / WORKER_FILE).read_text() == Path(worker.__file__).read_text()
