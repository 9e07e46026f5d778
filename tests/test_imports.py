"""Which part may import which other one is a contract (setup.cfg, sections [importlinter...])."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

SETUP = Path(__file__).parents[1] / "setup.cfg"


def test_every_part_imports_only_what_it_may(capsys: pytest.CaptureFixture[str]) -> None:
    broken = lint_imports(config_filenames=(str(SETUP),), no_cache=True, no_logo=True)
    assert not broken, capsys.readouterr().out
