"""Commands that several threads wait for end together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from marctl.core.children import Children, Ended


def python(children: Children, folder: Path, code: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return children.run([sys.executable, "-c", code], folder=folder, env=dict(os.environ), timeout_s=timeout_s)


def test_a_command_runs_in_its_folder_and_its_output_and_exit_code_are_told(tmp_path: Path) -> None:
    done = python(Children(), tmp_path, "import os, sys; print(os.getcwd()); sys.stderr.write('no'); sys.exit(3)")
    assert (done.stdout, done.stderr, done.returncode) == (f"{tmp_path.resolve()}\n", "no", 3)


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        python(Children(), tmp_path, code, timeout_s=2.0)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_the_end_ends_what_runs_in_other_threads_and_nothing_is_started_afterwards(tmp_path: Path) -> None:
    children = Children()
    with ThreadPoolExecutor(2) as pool:
        code = "open(sys.argv[0], 'w'); import time; time.sleep(600)"
        begun = [pool.submit(python, children, tmp_path, f"import sys; sys.argv = ['{i}']; {code}") for i in range(2)]
        while len(list(tmp_path.iterdir())) < len(begun):
            time.sleep(0.01)
        children.end()
        assert [future.result(timeout=30).returncode for future in begun] == [-9, -9]
    with pytest.raises(Ended):
        python(children, tmp_path, "")
