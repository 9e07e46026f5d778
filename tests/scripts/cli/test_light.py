"""A command that is refused, and every help, answers at once: it has imported no library that takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.scripts.cli.test_group import whole_names

HELP = [f"{name} --help" for name in whole_names()]
SLOW = {
    "torch",
    "transformers",
    "ray",
    "pyarrow",
    "captum",
    "sklearn",
    "xgboost",
    "onnxruntime",
    "onnx",
    "openvino",
    "pandas",
}
CODE = """
import json, os, sys
from click.testing import CliRunner
from marctl.cli import main

for line in sys.stdin.read().splitlines():
    sys.stdout.flush()
    if os.fork() == 0:
        done = CliRunner().invoke(main, line.split())
        told = "" if isinstance(done.exception, SystemExit | None) else repr(done.exception)
        print(json.dumps([line, done.exit_code, told, done.output, sorted(sys.modules)]), flush=True)
        os._exit(0)
    os.wait()
"""


class Told(NamedTuple):
    """What became of a command."""

    exit_code: int
    fault: str
    output: str
    modules: list[str]


REFUSED = [
    "build nosuch",
    "build nosuch 1.0 --record",
    "build --record",
    "build --from nosuch --name quiz --version 2.0",
    "build --from folder --name quiz",
    "build --from folder --name a/b --version 1.0",
    "build --from folder --name quiz --version 1.0",
    "build --from folder --name quiz --version 1.0 --task ./own.py --samples nosuch.jsonl",
    "build --from folder --name quiz --version 2.0",
    "build --from labels.jsonl --name quiz --version 2.0",
    "inspect nosuch.mar",
    "inspect labels.jsonl --verify",
    "up --follow place --workers 2",
    "status",
    "register labels.jsonl",
    "scale quiz 1.0 2",
    "unregister quiz 1.0",
    "route split quiz 1.0=1",
    "route fallback quiz 1.0",
    "state apply empty.yaml",
    "rollback",
    "ask hello",
    "batch quiz/1.0 labels.jsonl out",
    "batch quiz/1.0 labels.jsonl out --unit-rows 300",
    "logs",
    "log tail",
    "log label labels.jsonl",
    "cache stats",
    "features get quiz 1.0 customer=1",
    "train quiz 1.0",
    "train nosuch 1.0 --data folder",
    "train quiz 1.0 --data nosuch",
    "eval quiz 1.0",
    "eval quiz 1.0 --data nosuch",
    "eval quiz 1.0 --file nosuch",
    "eval quiz 1.0 --file labels.jsonl",
    "calibrate quiz 1.0 --data nosuch",
    "export quiz/1.0",
    "export quiz --onnx",
    "export quiz/1.0 --onnx",
    "export quiz/1.0 --onnx --data nosuch",
    "export labels.jsonl --openvino",
    "export nosuch.mar --openvino",
    "quantize quiz 1.0 --data nosuch",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and files that are not what commands expect."""
    folder = tmp_path_factory.mktemp("place")
    recipe = folder / "model_store" / "quiz" / "1.0" / "model.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(
        "task: multiple_choice\ndescription: x\nweights: {directory: .}\n"
        "samples: [{request: {question: q, choices: [a, b]}, expected: {prediction: 0}}]\n"
    )
    (folder / "folder").mkdir()
    (folder / "labels.jsonl").write_text('{"prediction_id": "x", "label": 1}\n')
    (folder / "empty.yaml").write_text("[]\n")
    return folder


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, Told]:
    """Each command, in a process of its own that has imported nothing but the group of commands."""
    commands = "\n".join([*REFUSED, *HELP])
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=place, input=commands, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {line: Told(*rest) for line, *rest in found}


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_imports_nothing_slow(told: dict[str, Told], command: str) -> None:
    assert told[command].exit_code in (1, 2), told[command]
    assert told[command].fault == ""
    assert not SLOW & set(told[command].modules), told[command].output


@pytest.mark.parametrize("command", HELP)
def test_help_imports_no_more_than_click_and_the_commands(told: dict[str, Told], command: str) -> None:
    assert told[command].exit_code == 0
    assert not (SLOW | {"numpy", "msgspec", "yaml", "requests", "redis", "psutil"}) & set(told[command].modules)


def test_refusals_name_what_is_missing_or_wrong(told: dict[str, Told]) -> None:
    assert "give the labelled rows: either --data FOLDER, or --file FILE" in told["eval quiz 1.0"].output
    assert "marctl build quiz 1.0" in told["eval quiz 1.0 --file labels.jsonl"].output
    assert "exists already" in told["build --from folder --name quiz --version 1.0"].output
    assert "either --data, to train, or --init" in told["train quiz 1.0"].output
