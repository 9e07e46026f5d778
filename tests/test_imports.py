"""Which part may import which other one is a contract (setup.cfg, sections [importlinter...])."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def test_every_part_imports_only_what_it_may() -> None:
    """In a process of its own: import-linter configures logging, and would silence the loggers of other tests."""
    command = [str(Path(sys.executable).with_name("lint-imports")), str(SETUP), "--no-cache"]
    done = subprocess.run(command, cwd=SETUP.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
