"""A real Chromium without a window, of the system or of the environment (scripts/environment.sh)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def program() -> str:
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    for name in NAMES:
        if found := shutil.which(name, path=path):
            return found
    pytest.skip("no Chromium here; scripts/test.sh fetches it on Debian, elsewhere install it")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Until the end of the block."""
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = program()
    # Its sandbox needs rights that a container's root does not have; it opens this project's own pages only.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
