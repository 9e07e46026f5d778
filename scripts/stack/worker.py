"""What TorchServe starts as a worker: its own ts/model_service_worker.py (0.12.0), without PyTorch.

ts/protocol/otf_message_handler.py imports torch, which takes seconds and 200 MB, to ask whether an answer is a tensor.
Where no code of the version has imported torch, none is.

This file runs from a copy in the folder that `torchserve.make_home` makes, and imports nothing of this package.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any


class NoTensor:
    """The class that no answer has."""


class ImportedTorch(ModuleType):
    """Stands for the module torch: the one that a version's code has imported by now, if any."""

    def __getattr__(self, name: str) -> Any:
        found = sys.modules.get("torch")
        if found is not None:
            return getattr(found, name)
        if name == "Tensor":
            return NoTensor
        raise AttributeError(name)


def import_protocol() -> None:
    """Import TorchServe's protocol without torch."""
    sys.modules["torch"] = ImportedTorch("torch")
    try:
        import ts.protocol.otf_message_handler  # noqa: F401
    finally:
        del sys.modules["torch"]


def look_in(packages: str, home: Path) -> None:
    """Take modules from the folder of TorchServe's own package, as without this file, and none from `home`."""
    unwanted = {str(home), str(home / "ts")}
    sys.path[:] = dict.fromkeys(packages if path in unwanted else path for path in sys.path)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(packages if path == str(home) else path for path in inherited)


def end_at_once() -> None:
    """End the process without taking the interpreter apart, which takes half a second where PyTorch is loaded."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def main() -> None:
    atexit.register(end_at_once)  # before any other, and so called after them
    script = Path(__file__).absolute()
    package = (script.parent / "service.py").resolve().parent  # a link into the installed package
    look_in(str(package.parent), script.parent.parent)
    import_protocol()
    runpy.run_path(str(package / script.name), run_name="__main__")


if __name__ == "__main__":
    main()
