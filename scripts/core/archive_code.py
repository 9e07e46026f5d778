"""Where an archive holds its copy of the handlers: in a folder with the name that their package had at its build.

Nothing here imports that package: some processes must get it from an archive.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = "marctl_handlers"
PACKAGES = (PACKAGE, "handlers")
"""Archives that were built under the second name are served like all others; handlers/archive.py knows both, too."""
CODE_PREFIXES = tuple(f"{name}/" for name in PACKAGES)


def code_package(root: Path) -> str:
    """The name of the handlers' package in an extracted archive; that of today's for one that has none."""
    return next((name for name in PACKAGES if (root / name).is_dir()), PACKAGE)
